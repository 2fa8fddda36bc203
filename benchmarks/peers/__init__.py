"""Compares other embedding servers and libraries with ours: same models, texts, client and machine, in turns.

checkpoints  the models: MiniLM's real weights, and random weights of real shapes
forms        the same model as ONNX, OpenVINO and GGUF, written by the peers' own exporters
catalogue    the peers, and how each is started
workloads    what is asked, as HTTP requests or as calls
servers      a peer over HTTP
loops        a peer without a server: a loop in its own environment
agreement    whether a peer computes what we compute
machine      a quiet machine, CPU time, the peaks of matrix multiplication
results      the samples and their ratios
table, plot  the results, for readers
foreign/     scripts that run in the peers' environments
"""
