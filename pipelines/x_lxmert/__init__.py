"""X-LXMERT's own stages (`make x-lxmert`, docs/x-lxmert.md): questions, pretraining, fine-tuning on VQA, GQA and NLVR2."""
