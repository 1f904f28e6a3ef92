"""The model as a graph: loading, editing, and the layers that hold its weights."""
