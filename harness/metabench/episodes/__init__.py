"""Episodes: protocol, class bank and episode source. NumPy only; knows nothing of PyTorch."""
