"""What runs the calls: one `ExecutorFactory` each."""
