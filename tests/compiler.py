"""The backend of torch.compile in these tests."""

import os

#: torch's own generates C++ that does not compile where ATen is kept from vectors.
BACKEND = "aot_eager" if os.environ.get("ATEN_CPU_CAPABILITY") == "default" else "inductor"
