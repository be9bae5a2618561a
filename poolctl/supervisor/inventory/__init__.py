"""The machines behind routes, as the API of Proxmox VE knows them."""
