"""What listens behind the cluster's monitoring services: metrics, alerts, dashboards and logs.

VictoriaMetrics, VictoriaLogs and Grafana as far as their APIs show them, reached through the service proxy. Nothing
here is imported before somebody asks (see `hub`), and what the emulated targets would have told is computed when it
is asked for. Which part of PromQL and LogsQL is understood stands in `promql`, `evaluation` and `logsql`.
"""
