"""Drives a served simulator with the provider's own client, as its users do. Arguments: base URL, key, offer id. Prints one JSON object."""

import json
import os
import subprocess
import sys
import time

from vastai import VastAI
from vastai.api.client import VastClient
from vastai.api import instances, offers
from vastai.data.instance import InstanceConfig
from vastai.data.query import Query
from vastai.sync.client import SyncClient

url, key, offer = sys.argv[1], sys.argv[2], int(sys.argv[3])
told = {}


def until(what, probe, seconds=20):
    end = time.monotonic() + seconds
    while True:
        value = probe()
        if value:
            return value
        if time.monotonic() > end:
            raise SystemExit(f"waited in vain for {what}")
        time.sleep(0.1)


# The client's own functions.
client = VastClient(api_key=key, server_url=url, retry=1)
found = offers.search_offers(client, {"gpu_name": {"eq": "RTX 4090"}, "num_gpus": {"gte": "1"}}, "bid", limit=5)
told["search"] = [row["id"] for row in found]
told["search_new"] = [row["id"] for row in offers.search_offers_new(client, {}, "on-demand")]
made = instances.create_instance(client, offer, image="busybox", disk=10, price=0.25, label="by-client", env="-e GREETING=hello -p 8000:8000",
                                 onstart_cmd="/bin/sh", args=["-c", "echo says $GREETING; touch mark; sleep 600"], cancel_unavail=True)
machine = made["new_contract"]
told["create"] = made["success"]


def status(word):
    row = instances.show_instance(client, machine)
    return row if row and row["actual_status"] == word else None


row = until("running", lambda: status("running"))
told["read"] = {"label": row["label"], "is_bid": row["is_bid"], "env": row["extra_env"], "price": row["dph_base"], "port": "8000/tcp" in row["ports"]}
told["list"] = [row["id"] for row in instances.show_instances(client, {"label": {"eq": "by-client"}})]
told["filters"] = instances.show_instance_filters(client)
told["logs"] = until("the log", lambda: (lambda text: text if "hello" in text else None)(instances.logs(client, machine, tail="5")))
told["bid"] = instances.change_bid(client, machine, 0.3)["success"]
told["bid_after"] = instances.show_instance(client, machine)["dph_base"]
told["label"] = instances.label_instance(client, machine, "renamed")["success"]
told["execute"] = VastAI(api_key=key, server_url=url).execute(machine, "ls mark")
told["stop"] = instances.stop_instance(client, machine)["success"]
until("stopped", lambda: status("exited"))
told["start"] = instances.start_instance(client, machine)["success"]
until("running again", lambda: status("running"))
told["reboot"] = instances.reboot_instance(client, machine)["success"]
told["recycle"] = instances.recycle_instance(client, machine)["success"]
told["destroy"] = instances.destroy_instance(client, machine)["success"]
told["gone"] = instances.show_instance(client, machine)

# The newer typed client.
typed = SyncClient(api_key=key, vast_server=url)
rows = typed.search(Query.search_defaults(), limit=3)
told["typed_search"] = len(rows)
instance = typed.create_instance(offer, InstanceConfig(image="busybox", disk=10, runtype="args", args=["sleep", "600"]))
told["typed_visible"] = instance.id in [row.id for row in typed.show_instances()]
typed.destroy_instance(instance.id)

# The command line.
def run(*words):
    out = subprocess.run([os.path.join(os.path.dirname(sys.executable), "vastai"), "--url", url, "--api-key", key, *words], capture_output=True, text=True)
    if out.returncode:
        raise SystemExit(f"{words}: {out.stdout} {out.stderr}")
    return out.stdout


told["cli_search"] = "RTX_4090" in run("search", "offers", "gpu_name=RTX_4090 geolocation=NO dph_total<0.5")
made = json.loads(run("create", "instance", str(offer), "--image", "busybox", "--disk", "10", "--raw", "--bid_price", "0.3", "--args", "sleep", "600"))
shown = json.loads(run("show", "instance", str(made["new_contract"]), "--raw"))
told["cli_read"] = shown["image_uuid"]
told["cli_list"] = len(json.loads(run("show", "instances", "--raw")))
run("show", "instances")
told["cli_user"] = json.loads(run("show", "user", "--raw"))["credit"] > 0
told["cli_charges"] = len(json.loads(run("show", "invoices-v1", "--charges", "--raw"))) > 0
run("change", "bid", str(made["new_contract"]), "--price", "0.35")
run("stop", "instance", str(made["new_contract"]))
told["cli_destroy"] = "destroying instance" in run("destroy", "instance", "-y", str(made["new_contract"]))
told["cli_gone"] = json.loads(run("show", "instances", "--raw"))
print(json.dumps(told))
