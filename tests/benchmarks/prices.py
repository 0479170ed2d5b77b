"""What accelerators cost per hour, in US dollars: list prices of Google Cloud.

All come from SkyPilot's catalogue, which a program fills from Google's own price list:
github.com/skypilot-org/skypilot-catalog, catalogs/v9/gcp/vms.csv at commit 2c3d7ea. That commit has
no date in the copy that was read; its format, v9, is of 9 July 2026. It was read on 27 November
2026. Google's own pages (cloud.google.com/tpu/pricing, /spot-vms/pricing, /compute/gpus-pricing)
could not be read. A TPU's price includes its host; a GPU's is an eighth of its machine: processors,
memory and eight GPUs, without local disks. Spot prices change up to once a day and differ between
regions by a factor of three.
"""

import dataclasses

READ = "2026-11-27"
SOURCE = "SkyPilot's catalogue of Google Cloud's prices, v9 (July 2026), commit 2c3d7ea"


@dataclasses.dataclass(frozen=True)
class Price:
    """US dollars per chip and hour.

    Attributes:
        chip: its name in `launch.runtime.devices.hardware`.
        resource: the row of the catalogue.
        region: of Google Cloud.
        on_demand: without any commitment.
        spot: for machines that may be taken away at any time.
    """

    chip: str
    resource: str
    region: str
    on_demand: float
    spot: float


PRICES = (
    Price("v4", "tpu-v4-8, 4 chips", "us-central2", 12.88 / 4, 3.686 / 4),
    Price("v5e", "tpu-v5litepod-1", "us-central1", 1.2, 0.29771),
    Price("v5p", "tpu-v5p-1280, 640 chips", "us-central1", 2688.0 / 640, 499.5136 / 640),
    Price("v6e", "tpu-v6e-1", "us-central1", 2.7, 0.59266),
    Price(
        "H100",
        "a3-highgpu-8g and 8 x H100",
        "us-east4",
        (9.46006 + 78.37241) / 8,
        (3.68077 + 30.4792) / 8,
    ),
    Price(
        "H200",
        "a3-ultragpu-8g and 8 x H200",
        "us-east4",
        (12.266 + 74.49392) / 8,
        (4.77261 + 35.7128) / 8,
    ),
)
