"""What Triton compiles for a GPU, run without one.

``program`` reads PTX, ``machine`` runs it on tensors of the CPU with the instructions of ``operations`` and
``matrices`` and the checks of ``memory``, and ``triton_driver`` puts that in the place of the device.
"""
