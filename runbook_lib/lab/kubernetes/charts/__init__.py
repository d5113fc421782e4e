"""What the charts of the platform render: objects as their templates write them, for seeds and for Flux alike."""
