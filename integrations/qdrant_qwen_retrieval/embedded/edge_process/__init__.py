"""What runs in the engine's own process: qdrant-edge behind two pipes.

The parent starts it under the name `edge_process`, without the packages above, so that it starts as fast as numpy and
qdrant_edge can be imported. Modules here import each other relatively and nothing else of this distribution.
"""
