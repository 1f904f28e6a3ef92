from onnxslim_tk.packing.pack import packed_bytes as packed_bytes
