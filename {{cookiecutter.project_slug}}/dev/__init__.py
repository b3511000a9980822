"""What development needs and production never imports: real servers, started on demand."""
