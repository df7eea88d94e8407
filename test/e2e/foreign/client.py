"""A client of Shoal that holds no code of ours: Debian's python3-grpcio and stubs made from the proto files.

Usage: client.py PROTO_DIR SCHEDULER REGISTRY MANIFEST OUT_DIR
Applies the job, watches it to its end and streams the model into OUT_DIR. Prints one JSON object.
"""
import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile

import grpc


def stubs(proto_dir):
    out = tempfile.mkdtemp(prefix="shoal-stubs-")
    atexit.register(shutil.rmtree, out)
    files = sorted(
        os.path.join("shoal/v1", name)
        for name in os.listdir(os.path.join(proto_dir, "shoal/v1"))
        if name.endswith(".proto")
    )
    plugin = "--plugin=protoc-gen-grpc_python=" + (shutil.which("grpc_python_plugin") or "grpc_python_plugin")
    outputs = ["--python_out=" + out, "--grpc_python_out=" + out]
    subprocess.run(["protoc", "-I", proto_dir, plugin, *outputs, *files], check=True)
    sys.path.insert(0, out)


def main():
    proto_dir, scheduler, registry, manifest, out_dir = sys.argv[1:6]
    stubs(proto_dir)
    from shoal.v1 import job_service_pb2, job_service_pb2_grpc, meta_pb2, model_service_pb2, model_service_pb2_grpc

    jobs = job_service_pb2_grpc.JobServiceStub(grpc.insecure_channel(scheduler))
    with open(manifest, encoding="utf8") as file:
        applied = jobs.Apply(job_service_pb2.JobServiceApplyRequest(manifest=file.read()), timeout=120)
    name = applied.job.metadata.name

    phases = []
    synced = False
    watch = jobs.Watch(job_service_pb2.JobServiceWatchRequest(name=name), timeout=600)
    for change in watch:
        synced = synced or change.type == meta_pb2.WATCH_EVENT_TYPE_SYNCED
        if change.type == meta_pb2.WATCH_EVENT_TYPE_PUT:
            phases.append(change.job.status.phase)
            if change.job.status.phase in ("Completed", "Failed", "Cancelled"):
                watch.cancel()
                break

    models = model_service_pb2_grpc.ModelServiceStub(grpc.insecure_channel(registry))
    sizes = {}
    for response in models.Export(model_service_pb2.ExportRequest(name=name), timeout=240):
        piece = response.piece
        with open(os.path.join(out_dir, os.path.basename(piece.file_name)), "ab") as file:
            file.write(piece.data)
        sizes[piece.file_name] = sizes.get(piece.file_name, 0) + len(piece.data)

    refused = None
    try:
        jobs.Apply(job_service_pb2.JobServiceApplyRequest(manifest="kind: TrainingJob\nmetadata: {name: x}\nspec: {roundz: 3}"), timeout=60)
    except grpc.RpcError as error:
        refused = error.code().name
    print(json.dumps({"name": name, "outcome": applied.outcome, "phases": phases, "synced": synced, "sizes": sizes, "refused": refused}))


main()
