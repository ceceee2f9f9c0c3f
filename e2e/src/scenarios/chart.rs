//! What the Helm chart makes of its values. Needs helm, and no cluster.

#![allow(clippy::unused_async, reason = "a scenario is async; these wait for nothing")]

use std::collections::BTreeSet;
use std::process::Output;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::bed::Bed;
use crate::cluster;
use crate::scenario;
use crate::stack;
use crate::suite::Scenario;

/// Without a cluster helm would take an old version for granted.
const KUBERNETES: &str = "1.34.2";

pub fn all() -> Vec<Scenario> {
    vec![
        scenario!(a_chart_without_values_serves_all_namespaces_and_passes_the_restricted_level[helm]),
        scenario!(a_charts_rights_end_at_the_listed_namespaces_and_never_reach_secrets[helm]),
        scenario!(a_chart_monitors_the_operator_and_its_workers_where_that_is_asked_for[helm]),
        scenario!(a_chart_brings_alert_rules_and_dashboards_as_they_are_where_that_is_asked_for[helm]),
        scenario!(a_chart_refuses_values_that_it_does_not_know[helm]),
        scenario!(
            a_chart_has_two_replicas_of_the_operator_that_share_a_lease_and_nothing_else_of_its_kind[helm]
        ),
        scenario!(a_charts_workers_have_an_image_of_their_own_or_the_operators[helm]),
        scenario!(a_chart_brings_the_generated_definitions_and_keeps_them[helm]),
    ]
}

fn run(arguments: &[&str]) -> Result<Output> {
    Ok(cluster::helm()?.args(arguments).current_dir(stack::project()).output()?)
}

/// The objects of a release, with values as `--set` takes them.
fn template(values: &[&str]) -> Result<Vec<Value>> {
    let mut arguments = vec!["template", "penstock", "charts/penstock", "--namespace", "penstock-system"];
    arguments.extend(["--kube-version", KUBERNETES]);
    arguments.extend(values.iter().flat_map(|value| ["--set", value]));
    let output = run(&arguments)?;
    ensure!(output.status.success(), "helm: {}", String::from_utf8_lossy(&output.stderr));
    let documents: Vec<Value> = serde_saphyr::from_multiple(&String::from_utf8(output.stdout)?)?;
    Ok(documents.into_iter().filter(|document| !document.is_null()).collect())
}

fn of_kind<'a>(objects: &'a [Value], kind: &'a str) -> impl Iterator<Item = &'a Value> {
    objects.iter().filter(move |object| object["kind"] == kind)
}

fn one<'a>(objects: &'a [Value], kind: &'a str) -> Result<&'a Value> {
    let found: Vec<&Value> = of_kind(objects, kind).collect();
    let [object] = found.as_slice() else { bail!("{} objects {kind}", found.len()) };
    Ok(object)
}

/// What must be equal, and what it is called.
fn same(what: &str, found: &Value, expected: &Value) -> Result<()> {
    ensure!(found == expected, "{what} is {found}, not {expected}");
    Ok(())
}

fn variable<'a>(deployment: &'a Value, name: &str) -> &'a Value {
    let variables = deployment["spec"]["template"]["spec"]["containers"][0]["env"].as_array();
    variables
        .and_then(|variables| variables.iter().find(|variable| variable["name"] == name))
        .map_or(&Value::Null, |variable| &variable["value"])
}

async fn a_chart_without_values_serves_all_namespaces_and_passes_the_restricted_level(
    _: &mut Bed,
) -> Result<()> {
    let lint = run(&["lint", "--strict", "charts/penstock"])?;
    ensure!(lint.status.success(), "{}", String::from_utf8_lossy(&lint.stdout));
    let objects = template(&[])?;
    let deployment = one(&objects, "Deployment")?;
    same("the list of namespaces", variable(deployment, "PENSTOCK_NAMESPACES"), &json!(""))?;
    same(
        "the selector",
        &deployment["spec"]["selector"]["matchLabels"],
        &json!({
            "app.kubernetes.io/name": "penstock", "app.kubernetes.io/instance": "penstock", "app.kubernetes.io/component": "operator",
        }),
    )?;
    let job = one(&objects, "Job")?;
    same("the hook", &job["metadata"]["annotations"]["helm.sh/hook"], &json!("pre-delete"))?;
    for workload in [deployment, job] {
        let pod = &workload["spec"]["template"]["spec"];
        let security = &pod["securityContext"];
        same("runAsNonRoot", &security["runAsNonRoot"], &json!(true))?;
        same("the seccomp profile", &security["seccompProfile"]["type"], &json!("RuntimeDefault"))?;
        let container = &pod["containers"][0]["securityContext"];
        same(
            "the container's security",
            container,
            &json!({
                "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]},
            }),
        )?;
    }
    let accounts: BTreeSet<_> =
        of_kind(&objects, "ServiceAccount").map(|a| a["metadata"]["name"].as_str()).collect();
    ensure!(accounts == BTreeSet::from([Some("penstock"), Some("penstock-release")]), "{accounts:?}");
    for kind in ["ServiceMonitor", "PodMonitor", "NetworkPolicy"] {
        ensure!(of_kind(&objects, kind).next().is_none(), "a {kind} that nobody asked for");
    }
    Ok(())
}

async fn a_charts_rights_end_at_the_listed_namespaces_and_never_reach_secrets(_: &mut Bed) -> Result<()> {
    let listed = template(&["namespaces={north,south}"])?;
    same(
        "the list of namespaces",
        variable(one(&listed, "Deployment")?, "PENSTOCK_NAMESPACES"),
        &json!("north,south"),
    )?;
    let cluster = one(&listed, "ClusterRole")?;
    same(
        "what is left for the cluster",
        &cluster["rules"],
        &json!([
            {"apiGroups": [""], "resources": ["namespaces"], "verbs": ["get"], "resourceNames": ["north", "south"]},
        ]),
    )?;
    let granted: BTreeSet<_> = of_kind(&listed, "Role")
        .map(|role| (role["metadata"]["namespace"].as_str(), role["metadata"]["name"].as_str()))
        .collect();
    let expected = BTreeSet::from([
        (Some("north"), Some("penstock")),
        (Some("north"), Some("penstock-release")),
        (Some("south"), Some("penstock")),
        (Some("south"), Some("penstock-release")),
        (Some("penstock-system"), Some("penstock-lease")),
        (Some("penstock-system"), Some("penstock-release-operator")),
    ]);
    ensure!(granted == expected, "{granted:?}");
    for objects in [listed, template(&[])?] {
        for role in of_kind(&objects, "Role").chain(of_kind(&objects, "ClusterRole")) {
            let rules = role["rules"].to_string();
            ensure!(!rules.contains("secrets") && !rules.contains("\"*\""), "{rules}");
            let kind = format!("{}Binding", role["kind"].as_str().unwrap_or_default());
            let bound = of_kind(&objects, &kind).any(|binding| {
                binding["roleRef"]["name"] == role["metadata"]["name"]
                    && binding["metadata"]["namespace"] == role["metadata"]["namespace"]
                    && binding["subjects"][0]["namespace"] == "penstock-system"
            });
            ensure!(bound, "{} is bound to nobody", role["metadata"]["name"]);
        }
    }
    Ok(())
}

async fn a_chart_monitors_the_operator_and_its_workers_where_that_is_asked_for(_: &mut Bed) -> Result<()> {
    let on =
        ["serviceMonitor.enabled=true", "podMonitor.enabled=true", "podMonitor.labels.release=prometheus"];
    let objects = template(&on)?;
    let service = one(&objects, "Service")?;
    let monitor = one(&objects, "ServiceMonitor")?;
    for (label, value) in monitor["spec"]["selector"]["matchLabels"].as_object().context("a selector")? {
        same(label, &service["metadata"]["labels"][label], value)?;
    }
    same("the port", &monitor["spec"]["endpoints"][0]["port"], &service["spec"]["ports"][0]["name"])?;
    same("whose labels", &monitor["spec"]["endpoints"][0]["honorLabels"], &json!(true))?;
    let workers = one(&objects, "PodMonitor")?;
    for (place, label) in ["pipeline", "shard"].into_iter().enumerate() {
        let given = &workers["spec"]["podMetricsEndpoints"][0]["relabelings"][place];
        same("a label", &given["targetLabel"], &json!(label))?;
        let from = format!("__meta_kubernetes_pod_label_penstock_dev_{label}");
        same("where it is from", &given["sourceLabels"], &json!([from]))?;
    }
    same("where", &workers["spec"]["namespaceSelector"], &json!({"any": true}))?;
    same(
        "which pods",
        &workers["spec"]["selector"]["matchLabels"],
        &json!({
            "app.kubernetes.io/component": "worker", "app.kubernetes.io/managed-by": "penstock",
        }),
    )?;
    same("a label", &workers["metadata"]["labels"]["release"], &json!("prometheus"))?;
    let listed = template(&[&on[..], &["namespaces={north}"]].concat())?;
    same(
        "where",
        &one(&listed, "PodMonitor")?["spec"]["namespaceSelector"],
        &json!({"matchNames": ["north"]}),
    )
}

async fn a_chart_brings_alert_rules_and_dashboards_as_they_are_where_that_is_asked_for(
    _: &mut Bed,
) -> Result<()> {
    let file =
        |path: &str| std::fs::read_to_string(stack::project().join("charts/penstock/files").join(path));
    let project = "https://git.example/penstock/blob/main/";
    let on = ["alerts.enabled=true", "alerts.labels.release=prometheus", "dashboards.enabled=true"];
    let objects = template(&[&on[..], &[&format!("alerts.project={project}")]].concat())?;
    let rule = one(&objects, "PrometheusRule")?;
    same("a label", &rule["metadata"]["labels"]["release"], &json!("prometheus"))?;
    let linked = file("alerts.yaml")?.replace("docs/runbook/", &format!("{project}docs/runbook/"));
    same("the rules", &rule["spec"], &serde_saphyr::from_str(&linked)?)?;
    let boards: Vec<&Value> = of_kind(&objects, "ConfigMap").collect();
    ensure!(boards.len() == 3, "{} dashboards", boards.len());
    for (board, name) in boards.into_iter().zip(["fleet", "pipeline", "store"]) {
        same("the sidecar's label", &board["metadata"]["labels"]["grafana_dashboard"], &json!("1"))?;
        let text = file(&format!("dashboards/{name}.json"))?;
        same(name, &board["data"][format!("penstock-{name}.json")], &json!(text))?;
    }
    let without = template(&[])?;
    for kind in ["PrometheusRule", "ConfigMap"] {
        ensure!(of_kind(&without, kind).next().is_none(), "a {kind} that nobody asked for");
    }
    Ok(())
}

async fn a_chart_refuses_values_that_it_does_not_know(_: &mut Bed) -> Result<()> {
    for (value, said) in [
        ("replica=2", "additional properties 'replica' not allowed"),
        ("replicas=-1", "at '/replicas'"),
        ("leaseDurationSeconds=2", "at '/leaseDurationSeconds'"),
        ("image.tagg=1", "at '/image': additional properties 'tagg' not allowed"),
        ("namespaces={North}", "at '/namespaces/0'"),
        ("image.pullPolicy=Sometimes", "at '/image/pullPolicy'"),
        ("serviceMonitor.enabled=yes", "at '/serviceMonitor/enabled'"),
        ("alerts.project=git.example", "at '/alerts/project'"),
        ("networkPolicy.apiServerPorts={0}", "at '/networkPolicy/apiServerPorts/0'"),
    ] {
        let Err(refusal) = template(&[value]) else { bail!("{value} is taken") };
        ensure!(refusal.to_string().contains(said), "{value}: {refusal}");
    }
    Ok(())
}

async fn a_chart_has_two_replicas_of_the_operator_that_share_a_lease_and_nothing_else_of_its_kind(
    _: &mut Bed,
) -> Result<()> {
    let objects = template(&["leaseDurationSeconds=30"])?;
    let deployment = one(&objects, "Deployment")?;
    same("the replicas", &deployment["spec"]["replicas"], &json!(2))?;
    let strategy = json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}});
    same("the strategy", &deployment["spec"]["strategy"], &strategy)?;
    let spread = &deployment["spec"]["template"]["spec"]["topologySpreadConstraints"][0];
    same("a lack of nodes", &spread["whenUnsatisfiable"], &json!("ScheduleAnyway"))?;
    let selector = &deployment["spec"]["selector"];
    same("what is spread", &spread["labelSelector"], selector)?;
    let budget = one(&objects, "PodDisruptionBudget")?;
    same("what is kept from evictions", &budget["spec"]["selector"], selector)?;
    same("evictions", &budget["spec"]["maxUnavailable"], &json!(1))?;
    let lease = variable(deployment, "PENSTOCK_LEASE");
    same("the lease", lease, &json!("penstock"))?;
    same("its duration", variable(deployment, "PENSTOCK_LEASE_DURATION"), &json!("30"))?;
    let role = of_kind(&objects, "Role").find(|role| role["metadata"]["name"] == "penstock-lease");
    let role = role.context("no Role for the lease")?;
    same("where", &role["metadata"]["namespace"], &json!("penstock-system"))?;
    let group = json!(["coordination.k8s.io"]);
    let expected = json!([
        {"apiGroups": group, "resources": ["leases"], "verbs": ["create"]},
        {"apiGroups": group, "resources": ["leases"], "resourceNames": [lease], "verbs": ["get", "update"]},
    ]);
    same("the rights", &role["rules"], &expected)?;
    let alone = template(&["replicas=1"])?;
    ensure!(of_kind(&alone, "PodDisruptionBudget").next().is_none(), "one replica that nobody may evict");
    Ok(())
}

async fn a_charts_workers_have_an_image_of_their_own_or_the_operators(_: &mut Bed) -> Result<()> {
    for (values, operator, worker) in [
        (&[][..], "penstock:0.1.0", "penstock:0.1.0"),
        (&["image.repository=r.example/p", "image.tag=v2"][..], "r.example/p:v2", "r.example/p:v2"),
        (&["image.tag=v2", "worker.image.tag=v1"][..], "penstock:v2", "penstock:v1"),
        (&["worker.image.repository=w", "worker.image.pullPolicy=Always"][..], "penstock:0.1.0", "w:0.1.0"),
    ] {
        let objects = template(values)?;
        let deployment = one(&objects, "Deployment")?;
        let container = &deployment["spec"]["template"]["spec"]["containers"][0];
        same("the operator's image", &container["image"], &json!(operator))?;
        same("the workers' image", variable(deployment, "PENSTOCK_WORKER_IMAGE"), &json!(worker))?;
        let policy = if values.len() == 2 && worker == "w:0.1.0" { "Always" } else { "IfNotPresent" };
        same("its policy", variable(deployment, "PENSTOCK_WORKER_PULL_POLICY"), &json!(policy))?;
        let job = one(&objects, "Job")?;
        same(
            "the hook's image",
            &job["spec"]["template"]["spec"]["containers"][0]["image"],
            &json!(operator),
        )?;
    }
    Ok(())
}

async fn a_chart_brings_the_generated_definitions_and_keeps_them(_: &mut Bed) -> Result<()> {
    let objects = template(&[])?;
    let templated: Vec<&Value> = of_kind(&objects, "CustomResourceDefinition").collect();
    ensure!(templated.len() == 2, "{} definitions", templated.len());
    for (definition, file) in templated.into_iter().zip(["ingestpipeline", "telemetrystore"]) {
        let text = std::fs::read_to_string(stack::project().join(format!("crds/yaml/{file}.yaml")))?;
        let generated: Value = serde_saphyr::from_str(&text)?;
        ensure!(*definition == generated, "{file} is not what was generated");
        let policy = &definition["metadata"]["annotations"]["helm.sh/resource-policy"];
        same("the policy", policy, &json!("keep"))?;
    }
    let without = template(&["crds.install=false"])?;
    ensure!(
        of_kind(&without, "CustomResourceDefinition").next().is_none(),
        "definitions that are not wanted"
    );
    Ok(())
}
