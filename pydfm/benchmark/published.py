"""What anomalib publishes of its DFM on MVTec AD: image AUROC and the best image F1.

From the README of its model "dfm" (github.com/openvinotoolkit/anomalib), in two editions:

- current: src/anomalib/models/image/dfm/README.md at commit 4c0568b; features of layer3 averaged
  by 2 (ResNet-18) and by 4 (Wide ResNet-50), seed 42;
- old: anomalib/models/dfm/README.md of the first releases, seed 42; its pooling is not stated.
"""

from typing import Final

_CATEGORIES: Final = (
    *("carpet", "grid", "leather", "tile", "wood"),
    *("bottle", "cable", "capsule", "hazelnut", "metal_nut"),
    *("pill", "screw", "toothbrush", "transistor", "zipper"),
)

_TABLES: Final = {
    ("resnet18", "current", "image_auroc"): (
        "0.936 0.817 0.736 0.993 0.966 0.977 1 0.956 0.944 0.994 0.922 0.961 0.89 0.969 0.939 0.969"
    ),
    ("wide_resnet50_2", "current", "image_auroc"): (
        "0.943 0.855 0.784 0.997 0.995 0.975 0.999 0.969 0.924 0.978 0.939 0.962 0.873 0.969 0.971 "
        "0.961"
    ),
    ("resnet18", "current", "f1_max"): (
        "0.943 0.895 0.871 0.978 0.958 0.96 1 0.935 0.965 0.966 0.942 0.956 0.914 0.966 0.868 0.964"
    ),
    ("wide_resnet50_2", "current", "f1_max"): (
        "0.950 0.915 0.87 0.995 0.988 0.96 0.992 0.939 0.965 0.971 0.942 0.956 0.906 0.966 0.914 "
        "0.971"
    ),
    ("resnet18", "old", "image_auroc"): (
        "0.894 0.864 0.558 0.945 0.984 0.946 0.994 0.913 0.871 0.979 0.941 0.838 0.761 0.95 0.911 "
        "0.949"
    ),
    ("wide_resnet50_2", "old", "image_auroc"): (
        "0.891 0.978 0.540 0.979 0.977 0.974 0.990 0.891 0.931 0.947 0.839 0.809 0.700 0.911 0.915 "
        "0.981"
    ),
    ("resnet18", "old", "f1_max"): (
        "0.919 0.895 0.844 0.926 0.971 0.948 0.977 0.874 0.935 0.957 0.958 0.921 0.874 0.933 0.833 "
        "0.943"
    ),
    # Its own average says 0.951, which its 15 categories do not give: they average to 0.918.
    ("wide_resnet50_2", "old", "f1_max"): (
        "0.951 0.960 0.844 0.990 0.970 0.959 0.976 0.848 0.944 0.913 0.912 0.919 0.859 0.893 0.815 "
        "0.961"
    ),
}

PUBLISHED: Final = {
    key: dict(zip(_CATEGORIES, map(float, text.split()[1:]), strict=True))
    for key, text in _TABLES.items()
}
"""(backbone, edition, metric) -> category -> figure."""

SOURCE: Final = (
    "anomalib's figures are those of its model README (openvinotoolkit/anomalib, "
    "src/anomalib/models/image/dfm/README.md, and anomalib/models/dfm/README.md of its first "
    "releases)"
)
