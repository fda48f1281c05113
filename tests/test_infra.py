"""infra/ names nothing that does not exist: commands, options, flows, modules, recipe keys, ports, versions, fields.

There is no cluster here. Ray's own schema, Prefect's own models and the command lines' own parsers judge what they can;
for KubeRay the field names of its API reference (ray.io/v1) are typed below.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_lines import bash_lines, check_flashvideo, check_prefect, check_ray, commands_in

from pipelines.plan import JOB_NAMES, JOBS
from pipelines.recipe import load

ROOT = Path(__file__).resolve().parents[1]
INFRA = ROOT / "infra"
VERSION = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.M).group(1)  # type: ignore[union-attr]
DOCKERFILES = sorted((INFRA / "docker").glob("Dockerfile.?pu"))
YAML_FILES = sorted(INFRA.rglob("*.yaml"))
IMAGES = {f"flashvideo:{VERSION}-cpu", f"flashvideo:{VERSION}-gpu"}


def read(path: str) -> Any:
    return yaml.safe_load((INFRA / path).read_text())


def locked(package: str) -> str:
    found = re.search(rf"^{re.escape(package)}==(\S+)", (ROOT / "requirements.lock").read_text(), re.M)
    assert found, f"{package} is not in requirements.lock"
    return found.group(1)


def values(node: Any, key: str) -> list[Any]:
    """Everything that stands under `key`, at any depth."""
    if isinstance(node, dict):
        return [v for k, v in node.items() if k == key] + [found for v in node.values() for found in values(v, key)]
    if isinstance(node, list):
        return [found for entry in node for found in values(entry, key)]
    return []


def all_documents() -> list[tuple[str, Any]]:
    return [(str(path.relative_to(INFRA)), document) for path in YAML_FILES for document in yaml.safe_load_all(path.read_text())]


def test_every_yaml_file_parses_and_none_is_empty():
    assert len(YAML_FILES) >= 9
    assert all(isinstance(document, dict) and document for _, document in all_documents())


def test_no_python_and_no_secrets_in_infra():
    assert list(INFRA.rglob("*.py")) == []
    text = "\n".join(path.read_text() for path in INFRA.rglob("*") if path.is_file())
    assert not re.search(r"(?i)(password|api_key|token)\s*[:=]\s*['\"]?[0-9a-f]{16}", text)


# ---- images


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_dockerfiles_run_the_readmes_commands(path):
    text = path.read_text()
    assert re.findall(r"^FROM (\S+)$", text, re.M) == ["python:3.11-slim-bookworm"]  # Python 3.11, as pyproject.toml asks
    assert 'requires-python = ">=3.11,<3.12"' in (ROOT / "pyproject.toml").read_text()
    targets = re.findall(r"^RUN make (\S+)$", text, re.M)
    assert targets == ["packages", "setup"]
    makefile = (ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{target}:", makefile, re.M) for target in targets)
    for source in re.findall(r"^COPY (.+) \./$", text, re.M)[0].split():
        assert (ROOT / source).is_file()
    assert "ENTRYPOINT [" not in text
    assert json.loads(re.findall(r"^CMD (.+)$", text, re.M)[0]) == ["flashvideo", "doctor"]
    assert re.findall(r"-t (\S+)", text) == [f"flashvideo:{VERSION}-{path.suffix[1:]}"]
    ignored = path.with_name(path.name + ".dockerignore").read_text().split()
    assert ".git" in ignored and "**/.venv" in ignored


def test_the_two_dockerfiles_differ_only_in_the_device():
    cpu, gpu = (set(path.read_text().splitlines()) for path in DOCKERFILES)
    changed = {line.strip() for line in cpu ^ gpu if not line.startswith("#")}
    assert all("RAY_USAGE_STATS_ENABLED" in line or "NVIDIA_" in line for line in changed), changed


def test_images_are_the_ones_that_the_dockerfiles_make():
    named = {image for _, document in all_documents() for image in values(document, "image") if isinstance(image, str)}
    assert named and {image.removeprefix("registry.example.com/") for image in named} <= IMAGES


# ---- recipes, modules, commands


RECIPES = sorted(INFRA.rglob("recipe.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.parent.name)
def test_recipes_load_and_name_a_cluster(path):
    recipe = load(str(path))
    assert recipe.name not in ("debug", "single_gpu", "paper")
    assert recipe.runtime.runner == "ray"
    assert re.fullmatch(r"http://[\w.-]+:8265", recipe.runtime.ray_address or "")


def test_recipes_that_are_named_exist():
    text = "\n".join(path.read_text() for path in INFRA.rglob("*") if path.is_file())
    named = set(re.findall(r"/app/(infra/\S+?\.yaml)", text))
    assert named and all((ROOT / path).is_file() for path in named)


def command_lines() -> list[tuple[str, list[str]]]:
    """(where, words) of every command that infra names for one of the tools that are installed here."""
    lines: list[tuple[str, str]] = []
    for path in [INFRA / "README.md", *DOCKERFILES]:
        text = path.read_text()
        lines += [(path.name, line) for line in (bash_lines(text) if path.suffix == ".md" else re.findall(r"^#   (.+)$", text, re.M))]
    for where, document in all_documents():
        for key in ("command", "entrypoint", "test"):
            for value in values(document, key):
                lines.append((where, shlex.join(value) if isinstance(value, list) else str(value)))
        for key in ("head_start_ray_commands", "worker_start_ray_commands"):
            lines += [(where, line) for value in values(document, key) for line in value]
    return [(where, command) for where, line in lines for command in commands_in(line)]


COMMANDS = command_lines()


def options_of(words: list[str]) -> list[str]:
    return [word.split("=")[0] for word in words if word.startswith("--")]


def test_the_commands_are_found():
    tools = [words[0] for _, words in COMMANDS]
    assert {"flashvideo", "ray", "prefect", "python"} <= set(tools)
    assert len(COMMANDS) >= 18


@pytest.mark.parametrize(("tool", "check"), [("flashvideo", check_flashvideo), ("ray", check_ray), ("prefect", check_prefect)])
def test_commands_and_their_options_exist(tool, check, monkeypatch, tmp_path):
    """Each tool's own parser takes every line that infra/ names, and refuses one that is misspelt."""
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    lines = [(where, words) for where, (name, *words) in COMMANDS if name == tool]
    assert lines
    for where, words in lines:
        try:
            check(words)
        except Exception as error:
            pytest.fail(f"{where}: {tool} {shlex.join(words)}: {error}")
    with pytest.raises(Exception, match=r"--recipee|--blok|--pol"):
        check({"flashvideo": ["retrain", "--recipee", "x"], "ray": ["start", "--blok"], "prefect": ["worker", "start", "--pol", "x"]}[tool])


def test_flashvideo_commands_name_recipes_and_keys_that_load():
    checked = 0
    for where, (name, *words) in COMMANDS:
        if name == "flashvideo" and "--recipe" in words:
            recipe = words[words.index("--recipe") + 1].removeprefix("/app/")
            load(str(ROOT / recipe) if recipe.endswith(".yaml") else recipe)
            checked += 1
        if name == "python" and words[:1] == ["-m"]:
            module = words[1]
            assert module.removeprefix("pipelines.") in JOB_NAMES, f"{where}: no job {module}"
            assert (ROOT / (module.replace(".", "/") + ".py")).is_file()
            assert set(options_of(words)) <= {"--recipe", "--root", "--set", "--run-id"}
            recipe = words[words.index("--recipe") + 1].removeprefix("/app/")
            load(str(ROOT / recipe), tuple(words[i + 1] for i, word in enumerate(words) if word == "--set"))
            checked += 1
    assert checked >= 5


# ---- compose


def test_compose_services_hang_together():
    compose = read("docker/compose.yaml")
    services = compose["services"]
    assert set(compose["volumes"]) == {"runs", "prefect", "data"}
    for name, service in services.items():
        assert set(service.get("depends_on", {})) <= set(services), name
    assert compose["services"]["image"]["build"]["dockerfile"] == "infra/docker/Dockerfile.cpu"
    assert (INFRA / "docker" / services["image"]["build"]["context"]).resolve() == ROOT
    readme = (INFRA / "README.md").read_text()
    for line in re.findall(r"compose\.yaml (?:build|up --detach|run --rm) (.+)", readme):
        named = [word for word in line.split() if re.fullmatch(r"[a-z-]+", word) and not word.startswith("-")]
        assert named[0] in services


def test_compose_addresses_and_ports_agree():
    services = read("docker/compose.yaml")["services"]
    ray, prefect = services["ray-head"], services["prefect-server"]
    assert load(str(INFRA / "docker/recipe.yaml")).runtime.ray_address == "http://ray-head:8265"
    assert "--dashboard-port=8265" in ray["command"] and ray["ports"] == ["127.0.0.1:8265:8265"]
    assert "127.0.0.1:6379" in ray["healthcheck"]["test"] and "--port=6379" in ray["command"]
    assert services["prefect-worker"]["environment"]["PREFECT_API_URL"] == "http://prefect-server:4200/api"
    assert prefect["command"][-2:] == ["--port", "4200"] and prefect["ports"] == ["127.0.0.1:4200:4200"]
    assert ":4200/api/health" in " ".join(prefect["healthcheck"]["test"])
    for service in (ray, services["prefect-worker"]):  # who runs flows and jobs shares the root and the token
        assert "runs:/runs" in service["volumes"]
        assert service["environment"]["RAY_AUTH_MODE"] == "token"


# ---- Prefect


def flows() -> dict[str, ast.FunctionDef]:
    """Functions of orchestration/flows.py that carry @flow(...)."""
    functions = [node for node in ast.parse((ROOT / "orchestration/flows.py").read_text()).body if isinstance(node, ast.FunctionDef)]
    calls = {node.name: [d.func for d in node.decorator_list if isinstance(d, ast.Call)] for node in functions}
    return {node.name: node for node in functions if any(isinstance(f, ast.Name) and f.id == "flow" for f in calls[node.name])}


def test_deployments_name_flows_and_their_parameters():
    known = flows()
    assert set(known) >= {"curate", "train", "evaluate", "retrain"}
    deployments = read("prefect/prefect.yaml")["deployments"]
    assert {deployment["name"] for deployment in deployments} == {"curate-nightly", "retrain"}
    for deployment in deployments:
        path, _, function = deployment["entrypoint"].partition(":")
        assert path == "orchestration/flows.py" and function in known
        arguments = [argument.arg for argument in known[function].args.args]
        required = arguments[: len(arguments) - len(known[function].args.defaults)]
        assert set(required) <= set(deployment["parameters"]) <= set(arguments)
        load(str(ROOT / deployment["parameters"]["recipe"].removeprefix("/app/")))


def test_prefect_reads_its_own_files_as_meant():
    """Prefect's models ignore unknown keys, so what they keep must be all that was written."""
    from prefect.cli.deploy._models import PrefectYamlModel

    written = read("prefect/prefect.yaml")
    kept = PrefectYamlModel.model_validate(written).model_dump(by_alias=True, exclude_unset=True, mode="json")
    assert kept == written
    assert written["prefect-version"] == locked("prefect")
    step, arguments = next(iter(written["pull"][0].items()))
    module, _, function = step.rpartition(".")
    import importlib
    import inspect

    inspect.signature(getattr(importlib.import_module(module), function)).bind(**arguments)


def test_the_server_takes_what_prefects_client_sends():
    """Prefect 3.8.8's client sends null where a number is left out; FastAPI >= 0.151 refuses that (422 on `prefect deploy`)."""
    from fastapi import Body, FastAPI
    from fastapi.testclient import TestClient

    app = FastAPI()

    @app.post("/filter")
    def limit_of(limit: int = Body(200, embed=True)) -> int:
        return limit

    answer = TestClient(app).post("/filter", json={"limit": None})
    assert (answer.status_code, answer.json()) == (200, 200), "pin fastapi<0.151 and run make setup"


def test_the_work_pool_is_prefects_template_with_our_defaults():
    from prefect.workers.process import ProcessWorker

    ours, theirs = read_json("prefect/work-pool.json"), ProcessWorker.get_default_base_job_template()
    defaults = {name: entry.pop("default") for name, entry in ours["variables"]["properties"].items() if "default" in entry}
    for entry in theirs["variables"]["properties"].values():
        entry.pop("default", None)
    assert ours == theirs
    assert defaults["working_dir"] == "/app" and defaults["env"]["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"


def read_json(path: str) -> Any:
    return json.loads((INFRA / path).read_text())


def test_one_pool_name_everywhere():
    pools = {deployment["work_pool"]["name"] for deployment in read("prefect/prefect.yaml")["deployments"]}
    commands = [words for _, words in COMMANDS if words[0] == "prefect"]
    pools |= {words[words.index("--pool") + 1] for words in commands if "--pool" in words}
    pools |= {words[words.index("create") + 1] for words in commands if "create" in words}
    assert pools == {"flashvideo"}


# ---- Ray's cluster launcher


def test_ray_accepts_the_cluster_file():
    """Ray's own preparation and its own JSON schema, as `ray up` runs them."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(read("ray/cluster.yaml"))
    validate_config(config)
    assert config["max_workers"] == 8
    misspelt = read("ray/cluster.yaml") | {"head_start_commands": []}
    with pytest.raises(Exception, match="head_start_commands"):
        validate_config(prepare_config(misspelt))


def test_ray_cluster_ports_and_mounts():
    config = read("ray/cluster.yaml")
    head, worker = config["head_start_ray_commands"][-1], config["worker_start_ray_commands"][-1]
    port = re.search(r"--port=(\d+)", head).group(1)  # type: ignore[union-attr]
    assert f"$RAY_HEAD_IP:{port}" in worker
    assert "--dashboard-port=8265" in head
    mounts = [option.split()[1].split(":")[1] for option in config["docker"]["run_options"] if option.startswith("--volume")]
    assert mounts == ["/runs", "/data"]
    assert load(str(INFRA / "ray/recipe.yaml")).sources == ("/data/raw",)


# ---- Kubernetes

RAY_CLUSTER = {
    "suspend", "managedBy", "autoscalerOptions", "headServiceAnnotations", "enableInTreeAutoscaling", "gcsFaultToleranceOptions",
    "headGroupSpec", "rayVersion", "workerGroupSpecs", "authOptions",
}  # fmt: skip
HEAD_GROUP = {"template", "headService", "enableIngress", "rayStartParams", "serviceType"}
WORKER_GROUP = {
    "suspend", "groupName", "replicas", "minReplicas", "maxReplicas", "idleTimeoutSeconds", "rayStartParams", "template",
    "scaleStrategy", "numOfHosts",
}  # fmt: skip
RAY_JOB = {
    "activeDeadlineSeconds", "backoffLimit", "rayClusterSpec", "submitterPodTemplate", "metadata", "clusterSelector",
    "submitterConfig", "managedBy", "deletionStrategy", "entrypoint", "runtimeEnvYAML", "jobId", "submissionMode",
    "entrypointResources", "entrypointNumCpus", "entrypointNumGpus", "ttlSecondsAfterFinished", "shutdownAfterJobFinishes", "suspend",
}  # fmt: skip
POD = {"containers", "volumes", "restartPolicy"}
CONTAINER = {"name", "image", "command", "args", "ports", "env", "resources", "volumeMounts"}
KINDS = {"RayCluster": "ray.io/v1", "RayJob": "ray.io/v1", "Job": "batch/v1", "PersistentVolumeClaim": "v1"}


def kubernetes_objects() -> list[dict[str, Any]]:
    return [document for name, document in all_documents() if name.startswith("kubernetes/") and "kind" in document]


def ray_clusters() -> list[dict[str, Any]]:
    return [o["spec"] for o in kubernetes_objects() if o["kind"] == "RayCluster"] + [
        o["spec"]["rayClusterSpec"] for o in kubernetes_objects() if o["kind"] == "RayJob"
    ]


def pods() -> list[dict[str, Any]]:
    return [template["spec"] for document in kubernetes_objects() for template in values(document, "template")]


def test_kubernetes_kinds_and_versions():
    objects = kubernetes_objects()
    assert {document["kind"] for document in objects} == set(KINDS)
    assert all(document["apiVersion"] == KINDS[document["kind"]] for document in objects)
    assert all(re.fullmatch(r"flashvideo[a-z-]*", document["metadata"]["name"]) for document in objects)


def test_kuberay_fields_are_known():
    assert len(ray_clusters()) == 2
    for spec in ray_clusters():
        assert set(spec) <= RAY_CLUSTER
        assert set(spec["headGroupSpec"]) <= HEAD_GROUP
        for group in spec.get("workerGroupSpecs", []):
            assert set(group) <= WORKER_GROUP
            assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        for parameters in values(spec, "rayStartParams"):
            assert all(isinstance(value, str) for value in parameters.values())
            check_ray(["start", "--head", *(f"--{name}={value}" for name, value in parameters.items())])
        assert spec["rayVersion"] == locked("ray")
    for document in kubernetes_objects():
        if document["kind"] == "RayJob":
            assert set(document["spec"]) <= RAY_JOB


def test_pods_are_whole():
    claims = {document["metadata"]["name"] for document in kubernetes_objects() if document["kind"] == "PersistentVolumeClaim"}
    assert len(pods()) == 4
    for pod in pods():
        assert set(pod) <= POD
        volumes = {volume["name"] for volume in pod["volumes"]}
        assert {claim["claimName"] for claim in values(pod, "persistentVolumeClaim")} <= claims
        for container in pod["containers"]:
            assert set(container) <= CONTAINER
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
            assert container["resources"]["requests"] == container["resources"]["limits"]


def test_kubernetes_addresses_ports_and_secret():
    head = ray_clusters()[0]["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert {port["containerPort"] for port in head["ports"]} == {6379, 8265}
    name = next(document["metadata"]["name"] for document in kubernetes_objects() if document["kind"] == "RayCluster")
    # KubeRay names the head's service <cluster>-head-svc
    assert load(str(INFRA / "kubernetes/recipe.yaml")).runtime.ray_address == f"http://{name}-head-svc:8265"
    secrets = {(secret["name"], secret["key"]) for document in kubernetes_objects() for secret in values(document, "secretKeyRef")}
    assert secrets == {("flashvideo-ray", "auth_token")}
    readme = (INFRA / "README.md").read_text()
    assert "create secret generic flashvideo-ray --from-literal=auth_token=" in readme
    applied = re.findall(r"kubectl apply -f (\S+)", readme)
    assert applied and all((ROOT / path).is_file() for path in applied)


def test_the_cluster_is_as_large_as_its_recipe_asks():
    recipe = load(str(INFRA / "kubernetes/recipe.yaml"))
    group = ray_clusters()[0]["workerGroupSpecs"][0]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    cpus, gpus = group["replicas"] * int(limits["cpu"]), group["replicas"] * int(limits["nvidia.com/gpu"])
    for job in JOBS:
        demand = job.demand(recipe)
        assert demand.cpus <= cpus and demand.gpus <= gpus, f"{job.name} asks for {demand}"


def test_the_readme_names_every_file():
    text = (INFRA / "README.md").read_text()
    files = {path.name for path in INFRA.rglob("*") if path.is_file()} - {"README.md"}
    assert {name for name in files if name not in text and not name.endswith(".dockerignore")} == set()
    links = re.findall(r"\]\((\S+?)\)", text)
    assert all((INFRA / link).exists() for link in links if "://" not in link)
