//! The CRDs on a real API server: defaults, refusals in the words a user sees, columns, explanations.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed unwrap fails the test")]

use serde_json::{Value, json};
use tradewind_harness::{Plane, or_skip, plane::Kubectl, project_root};

/// A namespace on a control plane that has our CRDs; `None` after saying why there is none.
async fn plane(prefix: &str) -> Option<(&'static Plane, String)> {
    static INSTALLED: tokio::sync::OnceCell<()> = tokio::sync::OnceCell::const_new();
    let plane = or_skip(Plane::shared().await)?;
    let install = async || {
        let crds = project_root().join("crds");
        plane.kubectl().run(["apply", "-f", crds.to_str().unwrap()]).await.unwrap();
        let wait = ["wait", "--for=condition=Established", "--timeout=30s", "crd", "--all"];
        plane.kubectl().run(wait).await.unwrap();
    };
    INSTALLED.get_or_init(install).await;
    Some((plane, plane.namespace(prefix).await.unwrap()))
}

fn job(namespace: &str, name: &str, spec: Value) -> Value {
    let mut whole = json!({"template": {"spec": {"containers": [{"name": "train", "image": "demo/charlm:1"}]}}});
    whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    json!({
        "apiVersion": "tradewind.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": name, "namespace": namespace},
        "spec": whole
    })
}

fn provider(name: &str, spec: Value) -> Value {
    let metadata = json!({"name": name});
    json!({"apiVersion": "tradewind.dev/v1alpha1", "kind": "Provider", "metadata": metadata, "spec": spec})
}

/// What kubectl says when it refuses this.
async fn refusal(kubectl: &Kubectl, object: &Value) -> String {
    match kubectl.apply(&object.to_string()).await {
        Ok(_) => panic!("{object} was not refused"),
        Err(tradewind_harness::Error::Kubectl { stderr, .. }) => stderr,
        Err(other) => panic!("{other}"),
    }
}

#[tokio::test]
async fn defaults_are_there_from_the_first_read() {
    let Some((plane, namespace)) = plane("defaults").await else { return };
    let kubectl = plane.kubectl();
    kubectl
        .apply(
            &job(
                &namespace,
                "bare",
                json!({"checkpoint": {
        "path": "ckpt", "pattern": "step-{step}.npz", "to": "s3://bucket/prefix/", "secretRef": {"name": "s3"}
    }, "gpu": {}}),
            )
            .to_string(),
        )
        .await
        .unwrap();
    let read = kubectl.get_json(["tj", "bare", "-n", &namespace]).await.unwrap();
    let spec = &read["spec"];
    assert_eq!(spec["workers"], 1);
    assert_eq!(spec["gpu"], json!({"count": 1, "models": []}));
    assert_eq!(
        spec["placement"],
        json!({
            "inCluster": "Prefer", "burstAfter": "2m", "capacity": "Any", "providers": [], "regions": [], "excludedHosts": [], "patience": "0s",
        })
    );
    assert_eq!((&spec["checkpoint"]["interval"], &spec["checkpoint"]["keep"]), (&json!("15m"), &json!(3)));
    assert_eq!(spec["checkpoint"]["onExisting"], "Resume");
    assert_eq!(spec["failurePolicy"], json!({"maxRestarts": 3, "rules": []}));
    assert_eq!((&spec["suspend"], &spec["stallTimeout"]), (&json!(false), &json!("30m")));
    assert_eq!(read["status"]["observedGeneration"], -1);
    assert_eq!(read["status"]["phase"], "Pending");

    kubectl.apply(&provider("defaults", json!({
        "kind": "Vast", "credentialsSecretRef": {"name": "vast"}, "limits": {"perHour": "1.00", "perDay": "10.00"}
    })).to_string()).await.unwrap();
    let read = kubectl.get_json(["twp", "defaults"]).await.unwrap();
    assert_eq!(read["spec"]["credentialsSecretRef"], json!({"name": "vast", "key": "apiKey"}));
    assert_eq!((&read["spec"]["paused"], &read["status"]["observedGeneration"]), (&json!(false), &json!(-1)));
    kubectl.run(["delete", "twp", "defaults"]).await.unwrap();
}

#[tokio::test]
async fn what_a_user_gets_wrong_is_refused_in_plain_words() {
    let Some((plane, namespace)) = plane("refusals").await else { return };
    let checkpoint = |field: &str, value: Value| {
        let mut checkpoint = json!({"path": "c", "pattern": "*", "to": "s3://bucket/p/", "secretRef": {"name": "s3"}});
        checkpoint[field] = value;
        json!({"checkpoint": checkpoint})
    };
    let only = |field: &str, value: Value| json!({"placement": {"inCluster": "Only", field: value}});
    let table = [
        (json!({"wrokers": 2}), r#"strict decoding error: unknown field "spec.wrokers""#),
        (json!({"placement": {"zone": "a"}}), r#"strict decoding error: unknown field "spec.placement.zone""#),
        (
            json!({"workers": "two"}),
            r#"spec.workers: Invalid value: "string": spec.workers in body must be of type integer: "string""#,
        ),
        (
            json!({"workers": 0}),
            "spec.workers: Invalid value: 0: spec.workers in body should be greater than or equal to 1",
        ),
        (
            json!({"budget": {"total": "-1"}}),
            r#"spec.budget.total: Invalid value: "-1": must be dollars such as "10.00""#,
        ),
        (
            json!({"budget": {"perHour": "$2"}}),
            r#"spec.budget.perHour: Invalid value: "$2": must be dollars such as "10.00""#,
        ),
        (
            json!({"budget": {"total": "1.00", "perHour": "2.00"}}),
            "spec.budget.perHour: Invalid value: budget.perHour must not be more than budget.total",
        ),
        (
            checkpoint("interval", json!("5 minutes")),
            r#"spec.checkpoint.interval: Invalid value: "5 minutes": must be a time span such as 15m or 1h30m"#,
        ),
        (checkpoint("interval", json!("0s")), "spec.checkpoint.interval: Invalid value: must be longer than zero"),
        (
            checkpoint("to", json!("gs://bucket")),
            r#"spec.checkpoint.to: Invalid value: "gs://bucket": must be a bucket and a prefix of letters, digits and ._=/- such as s3://bucket/prefix/"#,
        ),
        (
            checkpoint("pattern", json!("a/b")),
            r#"spec.checkpoint.pattern: Invalid value: "a/b": must be a name without / such as step-{step}.npz or *-state; the directory goes into path"#,
        ),
        (
            checkpoint("pattern", json!("{step}-{step}")),
            r#"spec.checkpoint.pattern: Invalid value: "{step}-{step}": must have {step} at most once"#,
        ),
        (
            checkpoint("path", json!("//.")),
            r#"spec.checkpoint.path: Invalid value: "//.": must be a directory of the program's own such as output"#,
        ),
        (
            checkpoint("path", json!("out/../..")),
            r#"spec.checkpoint.path: Invalid value: "out/../..": must not go up by ..: name the directory itself"#,
        ),
        (json!({"gangTimeout": "0s"}), "spec.gangTimeout: Invalid value: must be longer than zero"),
        (json!({"stallTimeout": "0m"}), "spec.stallTimeout: Invalid value: must be longer than zero"),
        (
            json!({"workers": 2, "placement": {"providers": ["vast"]}}),
            "spec.placement.providers: Invalid value: placement.providers names where to rent, but several workers run in the cluster only",
        ),
        (
            json!({"workers": 2, "placement": {"capacity": "Spot"}}),
            "spec.placement.capacity: Invalid value: placement.capacity is about rented machines, but several workers run in the cluster only",
        ),
        (
            json!({"workers": 2, "placement": {"regions": ["NO"]}}),
            "spec.placement.regions: Invalid value: placement.regions names where to rent, but several workers run in the cluster only",
        ),
        (
            only("providers", json!(["vast"])),
            "spec.placement.providers: Invalid value: placement.providers names where to rent, but placement.inCluster is Only: remove one of the two",
        ),
        (
            only("capacity", json!("Spot")),
            "spec.placement.capacity: Invalid value: placement.capacity is about rented machines, but placement.inCluster is Only: remove one of the two",
        ),
        (
            only("regions", json!(["NO"])),
            "spec.placement.regions: Invalid value: placement.regions names where to rent, but placement.inCluster is Only: remove one of the two",
        ),
        (
            json!({"placement": {"maxPricePerHour": "0.50"}}),
            "spec.placement.maxPricePerHour: Invalid value: is a price to wait for: say how long with placement.patience, or until when with completeWithin",
        ),
        (
            json!({"placement": {"maxPricePerHour": "cheap", "patience": "1h"}}),
            r#"spec.placement.maxPricePerHour: Invalid value: "cheap": must be dollars such as "10.00""#,
        ),
        (
            json!({"placement": {"patience": "a while"}}),
            r#"spec.placement.patience: Invalid value: "a while": must be a time span such as 15m or 1h30m"#,
        ),
        (
            json!({"placement": {"inCluster": "Only", "maxPricePerHour": "0.50", "patience": "1h"}}),
            "spec.placement.maxPricePerHour: Invalid value: placement.maxPricePerHour is about rented machines, but placement.inCluster is Only: remove one of the two",
        ),
        (
            json!({"workers": 2, "placement": {"maxPricePerHour": "0.50", "patience": "1h"}}),
            "spec.placement.maxPricePerHour: Invalid value: placement.maxPricePerHour is about rented machines, but several workers run in the cluster only",
        ),
        (
            json!({"completeWithin": "2h"}),
            "spec.completeWithin: Invalid value: a deadline can be kept only if it is known how much work there is: set work.hours",
        ),
        (
            json!({"completeWithin": "0s", "work": {"hours": "1"}}),
            "spec.completeWithin: Invalid value: must be longer than zero",
        ),
        (
            json!({"completeWithin": "tomorrow", "work": {"hours": "1"}}),
            r#"spec.completeWithin: Invalid value: "tomorrow": must be a time span such as 15m or 1h30m"#,
        ),
        (
            json!({"placement": {"inCluster": "Maybe"}}),
            r#"spec.placement.inCluster: Unsupported value: "Maybe": supported values: "Prefer", "Only", "Never""#,
        ),
        (
            json!({"placement": {"burstAfter": "soon"}}),
            r#"spec.placement.burstAfter: Invalid value: "soon": must be a time span such as 15m or 1h30m"#,
        ),
        (
            json!({"placement": {"minReliability": "98%"}}),
            r#"spec.placement.minReliability: Invalid value: "98%": must be a number from 0 to 1 such as "0.98""#,
        ),
        (
            json!({"gpu": {"minMemory": "20 GB"}}),
            r#"spec.gpu.minMemory: Invalid value: "20 GB": must be a size such as 20Gi"#,
        ),
        (
            json!({"gpu": {"minCudaVersion": "12"}}),
            r#"spec.gpu.minCudaVersion: Invalid value: "12": must be a CUDA version such as "12.4""#,
        ),
        (
            json!({"work": {"hours": "1", "inputSize": "big"}}),
            r#"spec.work.inputSize: Invalid value: "big": must be a size such as 20Gi"#,
        ),
        (
            json!({"placement": {"excludedHosts": [""]}}),
            "spec.placement.excludedHosts[0] in body should be at least 1 chars long",
        ),
        (
            json!({"work": {"hours": "long"}}),
            r#"spec.work.hours: Invalid value: "long": must be a decimal number such as "1.5""#,
        ),
        (
            json!({"template": {"spec": {"restartPolicy": "OnFailure", "containers": [{"name": "train", "image": "i"}]}}}),
            r#"spec.template.spec.restartPolicy: Invalid value: "OnFailure": must be Never or absent: failurePolicy of the job"#,
        ),
        (
            json!({"workers": 4, "placement": {"inCluster": "Never"}}),
            "spec.placement.inCluster: Invalid value: several workers need a private network between them, which rented machines do not have yet",
        ),
        (json!({"workers": 513}), "spec.workers in body should be less than or equal to 512"),
        (
            json!({"gangTimeout": "never"}),
            r#"spec.gangTimeout: Invalid value: "never": must be a time span such as 15m or 1h30m"#,
        ),
        (
            json!({"stallTimeout": "-5m"}),
            r#"spec.stallTimeout: Invalid value: "-5m": must be a time span such as 15m or 1h30m"#,
        ),
        (
            json!({"ttlAfterFinished": "1d"}),
            r#"spec.ttlAfterFinished: Invalid value: "1d": must be a time span such as 15m or 1h30m"#,
        ),
        (json!({"gpu": {"count": 0}}), "spec.gpu.count in body should be greater than or equal to 1"),
        (json!({"gpu": {"count": 65}}), "spec.gpu.count in body should be less than or equal to 64"),
        (json!({"gpu": {"models": [""]}}), "spec.gpu.models[0] in body should be at least 1 chars long"),
        (checkpoint("keep", json!(0)), "spec.checkpoint.keep in body should be greater than or equal to 1"),
        (
            checkpoint("writers", json!("All")),
            r#"spec.checkpoint.writers: Unsupported value: "All": supported values: "RankZero", "AllRanks""#,
        ),
        (
            checkpoint("onExisting", json!("Overwrite")),
            r#"spec.checkpoint.onExisting: Unsupported value: "Overwrite": supported values: "Resume", "Fail", "Fresh""#,
        ),
        (checkpoint("secretRef", Value::Null), "spec.checkpoint.secretRef: Required value"),
        (checkpoint("path", json!("")), "spec.checkpoint.path in body should be at least 1 chars long"),
        (json!({"placement": {"minDownloadMbps": 0}}), "should be greater than or equal to 1"),
        (json!({"failurePolicy": {"maxRestarts": -1}}), "should be greater than or equal to 0"),
        (
            json!({"failurePolicy": {"rules": [{"exitCodes": [0], "action": "Fail"}]}}),
            "spec.failurePolicy.rules[0].exitCodes[0] in body should be greater than or equal to 1",
        ),
        (
            json!({"failurePolicy": {"rules": [{"exitCodes": [], "action": "Fail"}]}}),
            "spec.failurePolicy.rules[0].exitCodes in body should have at least 1 items",
        ),
        (
            json!({"failurePolicy": {"rules": [{"exitCodes": [2], "action": "Retry"}]}}),
            r#"spec.failurePolicy.rules[0].action: Unsupported value: "Retry": supported values: "Fail", "Restart""#,
        ),
        (json!({"suspend": "yes"}), r#"spec.suspend in body must be of type boolean: "string""#),
        (json!({"template": {}}), "spec.template.spec: Required value"),
        (
            json!({"template": {"spec": {"containers": [{"name": "a", "image": "i"}, {"name": "a", "image": "i"}]}}}),
            r#"spec.template.spec.containers[1]: Duplicate value: {"name":"a"}"#,
        ),
        (
            json!({"template": {"spec": {"containers": []}}}),
            "spec.template.spec.containers: Invalid value: 0: spec.template.spec.containers in body should have at least 1 items",
        ),
    ];
    for (spec, expected) in table {
        let said = refusal(plane.kubectl(), &job(&namespace, "wrong", spec.clone())).await;
        assert!(said.contains(expected), "{spec} was refused with\n{said}\nwithout\n{expected}");
    }
    let said = refusal(plane.kubectl(), &job(&namespace, &"n".repeat(53), json!({}))).await;
    assert!(
        said.contains("metadata.name: Invalid value: must have at most 52 characters, since Pods are named after it"),
        "{said}"
    );
    plane.kubectl().apply(&job(&namespace, &"n".repeat(52), json!({})).to_string()).await.unwrap();

    let spec = |limit: &str| json!({"kind": "Vast", "credentialsSecretRef": {"name": "v"}, "limits": {"perHour": limit, "perDay": "9"}});
    let said = refusal(plane.kubectl(), &provider("p", spec("-1"))).await;
    assert!(said.contains(r#"spec.limits.perHour: Invalid value: "-1": must be dollars such as "10.00""#), "{said}");
    let said = refusal(plane.kubectl(), &provider("p", spec("10000000000"))).await;
    assert!(said.contains("must be dollars such as"), "more than anybody has: {said}");
    let with_access = |entry: Value| {
        let mut spec = spec("1");
        spec["access"] = json!([entry]);
        provider("p", spec)
    };
    let table = [
        (json!({"limits": {"perHour": "1"}}), "spec.access[0].namespaceSelector: Required value"),
        (
            json!({"namespaceSelector": {}, "limits": {"perHour": "-1"}}),
            r#"spec.access[0].limits.perHour: Invalid value: "-1": must be dollars such as "10.00""#,
        ),
        (
            json!({"namespaceSelector": {}, "limits": {}}),
            "spec.access[0].limits: Invalid value: must say perHour, perDay or both",
        ),
        (
            json!({"namespaceSelector": {}, "minTrust": "Nobody"}),
            r#"spec.access[0].minTrust: Unsupported value: "Nobody": supported values: "Community", "Datacenter", "Enterprise""#,
        ),
        (
            json!({"namespaceSelector": {"matchLabels": {"team": "a b"}}}),
            r#"spec.access[0].namespaceSelector.matchLabels[team]: Invalid value: "a b": must be the value of a label: at most 63 letters, digits and ._-"#,
        ),
        (
            json!({"namespaceSelector": {"matchLabels": {"no key": "a"}}}),
            "must be the key of a label such as team or example.com/team",
        ),
        (
            json!({"namespaceSelector": {"matchExpressions": [{"key": "team", "operator": "In"}]}}),
            "spec.access[0].namespaceSelector.matchExpressions[0].values: Invalid value: In and NotIn need values, Exists and DoesNotExist must have none",
        ),
        (
            json!({"namespaceSelector": {"matchExpressions": [{"key": "team", "operator": "Exists", "values": ["a"]}]}}),
            "In and NotIn need values, Exists and DoesNotExist must have none",
        ),
        (
            json!({"namespaceSelector": {"matchExpressions": [{"key": "team", "operator": "Like", "values": ["a"]}]}}),
            r#"Unsupported value: "Like": supported values: "In", "NotIn", "Exists", "DoesNotExist""#,
        ),
    ];
    for (entry, expected) in table {
        let said = refusal(plane.kubectl(), &with_access(entry.clone())).await;
        assert!(said.contains(expected), "{entry} was refused with\n{said}\nwithout\n{expected}");
    }
    let said = refusal(plane.kubectl(), &provider(&"p".repeat(64), spec("1"))).await;
    assert!(said.contains("metadata.name: Invalid value: must have at most 63 characters"), "{said}");
    let said =
        refusal(plane.kubectl(), &provider("p", json!({"kind": "Vast", "credentialsSecretRef": {"name": "v"}}))).await;
    assert!(said.contains("spec.limits: Required value"), "an account without limits: {said}");
}

#[tokio::test]
async fn what_tools_write_into_a_template_is_kept() {
    let Some((plane, namespace)) = plane("template").await else { return };
    let template = json!({
        "metadata": {"creationTimestamp": null, "labels": {"a": "b"}, "annotations": {"c": "d"}},
        "spec": {"restartPolicy": "Never", "somethingNew": {"x": [1]}, "containers": [
            {"name": "train", "image": "i", "resources": {"limits": {"nvidia.com/gpu": 1}}, "env": [{"name": "A", "value": "1"}]}
        ]}
    });
    plane.kubectl().apply(&job(&namespace, "kept", json!({"template": template})).to_string()).await.unwrap();
    let read = plane.kubectl().get_json(["tj", "kept", "-n", &namespace]).await.unwrap();
    assert_eq!(read["spec"]["template"]["spec"], template["spec"]);
    assert_eq!(read["spec"]["template"]["metadata"]["labels"], template["metadata"]["labels"]);
    // Null where a default or nothing belongs is read as absent.
    let nulls = json!({"budget": null, "gpu": null, "placement": null, "checkpoint": null});
    plane.kubectl().apply(&job(&namespace, "nulls", nulls).to_string()).await.unwrap();
}

#[tokio::test]
async fn lists_show_columns_and_fields_are_explained() {
    let Some((plane, namespace)) = plane("columns").await else { return };
    let kubectl = plane.kubectl();
    kubectl.apply(&job(&namespace, "shown", json!({})).to_string()).await.unwrap();
    let status = json!({"status": {
        "phase": "Running", "workers": {"ready": 1, "total": 1, "summary": "1/1"}, "preemptions": 2,
        "placement": {"summary": "vast-main (spot, NO)", "gpu": "1xRTX4090", "machine": "shown-0-abc", "rejected": []},
        "progress": {"step": 1240, "summary": "1240/3000"},
        "checkpoint": {"seq": 3, "step": 1200, "attempt": 0, "bytes": 5},
        "cost": {"summary": "$0.21", "settled": "0.10", "total": "0.21", "perHour": "0.40", "settledMachines": []}
    }});
    let patch = status.to_string();
    kubectl
        .run(["patch", "tj", "shown", "-n", &namespace, "--subresource=status", "--type=merge", "-p", &patch])
        .await
        .unwrap();
    let columns = |text: &str| text.lines().next().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
    let list = kubectl.run(["get", "tj", "-n", &namespace]).await.unwrap();
    assert_eq!(columns(&list), "NAME PHASE WORKERS WHERE GPU STEP CKPT COST AGE");
    for value in ["Running", "1/1", "vast-main (spot, NO)", "1xRTX4090", "1240/3000", "1200", "$0.21"] {
        assert!(list.contains(value), "{value} is not in\n{list}");
    }
    let wide = kubectl.run(["get", "tj", "-n", &namespace, "-o", "wide"]).await.unwrap();
    assert_eq!(columns(&wide), "NAME PHASE WORKERS WHERE GPU STEP CKPT COST PREEMPTED RESTARTS MACHINE MESSAGE AGE");
    assert!(wide.contains("shown-0-abc"), "{wide}");

    kubectl.apply(&provider("columns", json!({
        "kind": "Vast", "credentialsSecretRef": {"name": "vast"}, "limits": {"perHour": "1.00", "perDay": "10.00"}
    })).to_string()).await.unwrap();
    let list = kubectl.run(["get", "twp"]).await.unwrap();
    assert_eq!(columns(&list), "NAME KIND READY REASON MACHINES $/H LIMIT/H AGE");
    assert!(list.contains("columns") && list.contains("1.00"), "{list}");
    kubectl.run(["delete", "twp", "columns"]).await.unwrap();

    kubectl.apply(&machine("columns").to_string()).await.unwrap();
    let list = kubectl.run(["get", "twm"]).await.unwrap();
    assert_eq!(columns(&list), "NAME PHASE PROVIDER GPU REGION $/H COST JOB ATTEMPT AGE");
    assert!(list.contains("Claimed") && list.contains("vast-main"), "{list}");
    kubectl.run(["delete", "twm", "columns"]).await.unwrap();

    for (field, words) in [
        ("tj.spec.checkpoint.interval", "Time between saves"),
        ("tj.spec.placement.inCluster", "rent when they are full"),
        ("twp.spec.limits.perHour", "Dollars an hour"),
        ("twm.spec.claim", "The Pod that it may be rented for"),
    ] {
        let text = kubectl.run(["explain", field]).await.unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(text.contains(words), "kubectl explain {field} says\n{text}");
    }
}

fn machine(name: &str) -> Value {
    let offer = json!({"id": "1", "offer": {"any": {"thing": 1}}, "priceCap": "0.50", "reservePerHour": "0.51"});
    json!({
        "apiVersion": "tradewind.dev/v1alpha1",
        "kind": "RentedMachine",
        "metadata": {"name": name},
        "spec": {
            "provider": "vast-main",
            "job": {"namespace": "n", "name": "j", "uid": "u"},
            "claim": {"podNamespace": "n", "podName": "p", "podUid": "u"},
            "runId": "r",
            "attempt": 0,
            "offers": [offer],
            "workload": {"container": "train", "image": "i", "command": ["c"], "diskGib": 10, "stopGraceS": 30},
            "startDeadlineS": 900
        }
    })
}

#[tokio::test]
async fn what_deploy_ships_is_accepted() {
    let Some((plane, namespace)) = plane("deploy").await else { return };
    let kubectl = plane.kubectl();
    let file = |name: &str| project_root().join("deploy").join(name).display().to_string();
    let built = kubectl.run(["kustomize", &file("operator")]).await.unwrap();
    assert!(built.contains("kind: Deployment") && built.contains("kind: ClusterRole"), "{built}");
    kubectl.run(["apply", "-f", &file("operator/rbac.yaml")]).await.unwrap();
    let judge = ["apply", "--dry-run=server", "-f"];
    kubectl
        .run(judge.into_iter().chain([file("operator/deployment.yaml").as_str(), "-f", &file("samples")]))
        .await
        .unwrap();

    // The namespace enforces the restricted profile on Pods, not on Deployments: so the Pod is asked about.
    let render = ["create", "--dry-run=client", "-o", "json", "-f", &file("operator/deployment.yaml")];
    let text = kubectl.run(render).await.unwrap();
    let deployment: Value = serde_json::Deserializer::from_str(&text).into_iter().next().unwrap().unwrap();
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "judged", "namespace": "tradewind-system"},
        "spec": deployment["spec"]["template"]["spec"]
    });
    kubectl.run_with_input(["apply", "--dry-run=server", "-f", "-"], &pod.to_string()).await.unwrap();

    // The operator may read a namespace's Secrets only after its owner has said so, may never list them, and nobody else may spend.
    let may = async |verb: &str, what: &str, namespace: &str| {
        let account = "--as=system:serviceaccount:tradewind-system:tradewind-operator";
        let answer = kubectl.run(["auth", "can-i", verb, what, "-n", namespace, account, "--quiet"]).await;
        answer.is_ok()
    };
    assert!(may("get", "secrets", "tradewind-system").await && may("patch", "secrets", "tradewind-system").await);
    assert!(!may("get", "secrets", &namespace).await && !may("patch", "secrets", &namespace).await);
    assert!(may("patch", "providers", "default").await && !may("update", "providers", "default").await);
    let grant = std::fs::read_to_string(file("samples/secret-access.yaml")).unwrap();
    kubectl.apply(&grant.replace("namespace: default", &format!("namespace: {namespace}"))).await.unwrap();
    assert!(may("get", "secrets", &namespace).await && !may("list", "secrets", &namespace).await);
    assert!(!may("list", "secrets", "tradewind-system").await && !may("delete", "nodes", "default").await);
    assert!(!may("update", "trainingjobs", &namespace).await && !may("create", "deployments.apps", &namespace).await);
}
