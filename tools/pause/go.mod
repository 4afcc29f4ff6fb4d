// The process that holds a pod's namespaces open.
module tessera/tools/pause

go 1.26.0
