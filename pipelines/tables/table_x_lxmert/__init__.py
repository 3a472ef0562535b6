"""X-LXMERT's tables in miniature: `make table-x-lxmert`."""
