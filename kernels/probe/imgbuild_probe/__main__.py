import json
import sys

from imgbuild_probe import ProbeError, run

try:
    found = run()
except ProbeError as e:
    found = {"ok": False, "error": str(e), "code": e.code}
print(json.dumps(found))
sys.exit(0 if found["ok"] else 1)
