"""RAZ-Net: joint crowd counting and localization by recurrent attentive zooming (CVPR 2019)."""

__version__ = "0.1.0"
