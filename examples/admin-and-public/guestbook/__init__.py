"""A guest book with two interfaces: `public` reads and adds entries, `admin` removes them."""
