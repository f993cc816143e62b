"""launch/k8s/: against the published schemas of Job and Service; and its parts fit together."""

import re
import subprocess

import pytest
import yaml

from tests.launch.conftest import ROOT

K8S = ROOT / "launch/k8s"

# The fields of a JobSet's own part, jobset.x-k8s.io/v1alpha2, that the file may use.
FIELDS = {
  "spec": {
    "failurePolicy",
    "network",
    "replicatedJobs",
    "successPolicy",
    "ttlSecondsAfterFinished",
  },
  "failurePolicy": {"maxRestarts", "restartStrategy", "rules"},
  "network": {"enableDNSHostnames", "publishNotReadyAddresses", "subdomain"},
  "replicatedJobs": {"name", "replicas", "template", "dependsOn"},
  "rules": {"name", "action", "onJobFailureReasons", "targetReplicatedJobs"},
}


@pytest.fixture(scope="module")
def jobset():
  return yaml.safe_load((K8S / "jobset.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def service():
  return yaml.safe_load((K8S / "service.yaml").read_text(encoding="utf-8"))


def test_job_and_service_are_valid_to_the_last_field(jobset, service):
  """Breaks at a field that Kubernetes does not know, or one of another type (an int in env)."""
  schemas = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
  version = schemas.latest_version()
  schemas.validate(service, version, strict=True)
  [part] = jobset["spec"]["replicatedJobs"]
  job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}} | part["template"]
  schemas.validate(job, version, strict=True)
  job["spec"]["template"]["spec"]["containers"][0]["env"][1]["value"] = 4
  with pytest.raises(schemas.ValidationError):
    schemas.validate(job, version, strict=True)


def test_jobset_s_own_fields(jobset):
  assert jobset["apiVersion"] == "jobset.x-k8s.io/v1alpha2" and jobset["kind"] == "JobSet"
  spec = jobset["spec"]
  assert set(spec) <= FIELDS["spec"]
  assert set(spec["network"]) <= FIELDS["network"]
  assert set(spec["failurePolicy"]) <= FIELDS["failurePolicy"]
  for rule in spec["failurePolicy"]["rules"]:
    assert set(rule) <= FIELDS["rules"]
    assert rule["action"] in ("FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts")
    assert set(rule["onJobFailureReasons"]) <= {"BackoffLimitExceeded", "PodFailurePolicy"}
  for part in spec["replicatedJobs"]:
    assert set(part) <= FIELDS["replicatedJobs"]


def test_processes_find_each_other(jobset, service):
  """Breaks if a name, a port or a number is changed in one place and not in the others."""
  spec = jobset["spec"]
  [part] = spec["replicatedJobs"]
  job = part["template"]["spec"]
  pod = job["template"]["spec"]
  [container] = pod["containers"]
  env = {one["name"]: one for one in container["env"]}
  host, port = env["JAXLM_COORDINATOR"]["value"].split(":")
  # JobSet's name for the first pod: <set>-<part>-<job>-<pod>.<subdomain>
  assert host == f"{jobset['metadata']['name']}-{part['name']}-0-0.{spec['network']['subdomain']}"
  assert spec["network"]["subdomain"] == service["metadata"]["name"]
  assert service["spec"]["clusterIP"] == "None" and service["spec"]["publishNotReadyAddresses"]
  selector = service["spec"]["selector"]
  assert selector == {"jobset.sigs.k8s.io/jobset-name": jobset["metadata"]["name"]}
  assert [p["port"] for p in service["spec"]["ports"]] == [int(port)]
  assert [p["containerPort"] for p in container["ports"]] == [int(port)]
  assert job["completionMode"] == "Indexed" and job["backoffLimit"] == 0
  processes = int(env["JAXLM_NUM_PROCESSES"]["value"]) * part["replicas"]
  assert job["parallelism"] == job["completions"] == processes
  index = env["JAXLM_PROCESS_ID"]["valueFrom"]["fieldRef"]["fieldPath"]
  assert index == "metadata.annotations['batch.kubernetes.io/job-completion-index']"


def test_bad_input_ends_the_set_and_a_preemption_does_not(jobset):
  """Breaks if a restart is tried for status 2, or none for status 75."""
  [part] = jobset["spec"]["replicatedJobs"]
  job = part["template"]["spec"]
  [rule] = job["podFailurePolicy"]["rules"]
  assert rule["onExitCodes"]["values"] == [2] and rule["action"] == "FailJob"
  assert job["template"]["spec"]["restartPolicy"] == "Never"  # podFailurePolicy asks for it
  assert job["template"]["spec"]["terminationGracePeriodSeconds"] >= 120
  assert jobset["spec"]["failurePolicy"]["maxRestarts"] > 0


def test_tpu_pod_prints_what_it_would_do():
  """Breaks if the arguments of the run lose their quotes on the way to the hosts."""
  environment = {"PATH": "/usr/bin:/bin", "DRY_RUN": "1", "PROJECT": "p", "ZONE": "z"}
  environment |= {"TYPE": "v5p-128", "VERSION": "v2-alpha-tpuv5", "SPOT": "1"}
  found = subprocess.run(
    [str(ROOT / "launch/tpu_pod.sh"), "run", "--config=a.py", "--config.x['y']=1 2"],
    env=environment,
    capture_output=True,
    text=True,
  )
  assert found.returncode == 0, found.stderr
  create, copy, install, train = found.stdout.splitlines()
  assert "queued-resources create run --project=p --zone=z" in create and "--spot" in create
  assert "--worker=all" in copy and "pip" in install
  unquoted = subprocess.run(
    ["bash", "-c", f'printf "%s\\n" {train}'], capture_output=True, text=True, check=True
  )
  command = next(line for line in unquoted.stdout.splitlines() if line.startswith("--command="))
  assert "JAXLM_DISTRIBUTED=auto" in command
  words = subprocess.run(
    ["bash", "-c", f'printf "%s\\n" {re.sub(".*jaxlm.train ", "", command)}'],
    capture_output=True,
    text=True,
    check=True,
  )
  assert words.stdout.splitlines() == ["--config=a.py", "--config.x['y']=1 2"]
