"""An in-memory Kubernetes API server: state in `cluster`, HTTP in `server`."""
