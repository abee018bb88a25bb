"""What a network's record says, kept in an indexed form for whoever looks at it: the explorer's pages and the command line."""
