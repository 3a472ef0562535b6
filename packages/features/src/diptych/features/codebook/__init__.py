"""The codebook: k-means over grid features, and the code of every grid cell (X-LXMERT, section 5.1)."""
