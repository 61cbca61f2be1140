"""Results of studies that grow over days and machines: lines of a file, and the section of a document made of them."""
