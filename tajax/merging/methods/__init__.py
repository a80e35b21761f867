"""The merging methods, one a file; `tajax.merging` has their functions and the table of them."""
