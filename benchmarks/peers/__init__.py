"""What people use today, each behind one interface. A module here is imported only if its package is installed."""
