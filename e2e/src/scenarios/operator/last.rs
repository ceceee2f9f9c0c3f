//! What looks back at all other scenarios of the operator, and the end of the operator itself.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::bed::Bed;
use crate::plant::{self, PATIENCE, PIPELINE, Plant, SYSTEM};
use crate::scenario;
use crate::suite::{self, Scenario};
use crate::wait::until_async;

/// All of them, in this order.
pub fn all() -> Vec<Scenario> {
    vec![
        scenario!(the_api_server_refuses_bad_manifests_and_says_what_is_right[cluster, alone]),
        scenario!(no_call_of_the_operator_was_forbidden_and_unused_rules_are_listed[cluster, alone]),
        scenario!(an_operator_of_one_namespace_serves_that_one_with_rights_in_no_other[cluster, alone]),
        scenario!(an_uninstalled_operator_leaves_workers_and_no_pipeline_that_hangs[cluster, alone]),
    ]
}

async fn the_api_server_refuses_bad_manifests_and_says_what_is_right(bed: &mut Bed) -> Result<()> {
    let cluster = bed.cluster()?;
    let program = cluster.kubectl_command()?;
    let mut test = suite::cargo();
    test.args(["test", "--quiet", "--release", "--workspace", "--test", "refusals", "--", "--ignored"])
        .env("KUBECONFIG", cluster.kubeconfig())
        .env("KUBECTL", program.get_program());
    let output = tokio::task::spawn_blocking(move || test.output()).await??;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success() && said.contains("1 passed"),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Group, resource and verb.
type Right = (String, String, String);

async fn no_call_of_the_operator_was_forbidden_and_unused_rules_are_listed(bed: &mut Bed) -> Result<()> {
    let plant = Plant::new(bed).await?;
    plant.start(1).await?;
    let cluster = bed.cluster()?;
    let log = std::fs::read_to_string(cluster.audit_log()?)?;
    let (mut used, mut forbidden) = (BTreeSet::<Right>::new(), BTreeSet::new());
    let calls = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let account = format!("system:serviceaccount:{SYSTEM}:penstock");
    for call in calls
        .filter(|call| call["user"]["username"] == account.as_str() && call["stage"] == "ResponseComplete")
    {
        let text = |field: &str| call["objectRef"][field].as_str().unwrap_or_default().to_owned();
        let resource = match text("subresource") {
            subresource if subresource.is_empty() => text("resource"),
            subresource => format!("{}/{subresource}", text("resource")),
        };
        let right = (text("apiGroup"), resource, call["verb"].as_str().unwrap_or_default().to_owned());
        // A namespace that ends refuses new objects in the same way.
        if call["responseStatus"]["code"] == 403
            && !call["responseStatus"].to_string().contains("being terminated")
        {
            forbidden.insert(right.clone());
        }
        used.insert(right);
    }
    ensure!(used.len() > 20, "too few calls were seen: {used:?}");
    ensure!(forbidden.is_empty(), "forbidden: {forbidden:?}");
    let roles: Value = serde_json::from_str(&cluster.kubectl(&[
        "get",
        "clusterroles",
        "-o",
        "json",
        "-l",
        "app.kubernetes.io/instance=penstock",
    ])?)?;
    let mut granted = BTreeSet::<Right>::new();
    for rule in roles["items"]
        .as_array()
        .into_iter()
        .flatten()
        .flat_map(|role| role["rules"].as_array().into_iter().flatten())
    {
        let list = |field: &str| {
            rule[field]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        for group in list("apiGroups") {
            for resource in list("resources") {
                granted.extend(list("verbs").into_iter().map(|verb| (group.clone(), resource.clone(), verb)));
            }
        }
    }
    ensure!(granted.iter().all(|(_, resource, _)| resource != "secrets" && resource != "*"), "{granted:?}");
    eprintln!("  rules that no call of this run used:");
    for (group, resource, verb) in granted.difference(&used) {
        eprintln!("    {verb} {resource}.{group}");
    }
    Ok(())
}

async fn an_operator_of_one_namespace_serves_that_one_with_rights_in_no_other(bed: &mut Bed) -> Result<()> {
    let (plant, other) = (Plant::new(bed).await?, "e2e-not-served");
    let cluster = bed.cluster()?;
    plant::install_with(&cluster, &[&format!("namespaces={{{}}}", plant.namespace)])?;
    let check = async {
        cluster.kubectl(&["create", "namespace", other])?;
        plant.apply_in(other, &plant.manifest(|text| text)?)?;
        plant.start(1).await?;
        // Whether its own namespace ends is all that it may ask outside.
        let rules = "jsonpath={.items[*].rules[*]['resources', 'resourceNames', 'verbs']}";
        let label = "app.kubernetes.io/instance=penstock";
        let rights = cluster.kubectl(&["get", "clusterroles", "-l", label, "-o", rules])?;
        let own = format!(r#"["namespaces"] ["{}"] ["get"]"#, plant.namespace);
        ensure!(rights == own, "rights everywhere: {rights}");
        let unserved = cluster.kubectl(&[
            "get",
            "-n",
            other,
            "ingestpipelines.penstock.dev",
            PIPELINE,
            "-o",
            "jsonpath={.metadata.finalizers}{.status}",
        ])?;
        ensure!(unserved.is_empty(), "the pipeline of another namespace was touched: {unserved}");
        let log = plant.operator_log()?;
        ensure!(!log.contains("orbidden"), "{log}");
        plant.kubectl(&["delete", "ingestpipelines.penstock.dev", PIPELINE])?;
        anyhow::Ok(())
    };
    let result = check.await.with_context(|| plant.logs());
    let _ = cluster.kubectl(&["delete", "namespace", other, "--wait=false"]);
    plant::install(&cluster)?;
    result
}

async fn an_uninstalled_operator_leaves_workers_and_no_pipeline_that_hangs(bed: &mut Bed) -> Result<()> {
    let plant = Plant::new(bed).await?;
    plant.start(1).await?;
    let cluster = bed.cluster()?;
    let said = cluster.helm(&["uninstall", "penstock", "-n", SYSTEM, "--wait", "--timeout", "3m"]);
    let check = async {
        said?;
        let events = plant.kubectl(&["get", "events"])?;
        ensure!(events.contains(&format!("{}-0", plant.prefix)), "no Event names the client id: {events}");
        let deployment = plant.object("deployment", "plant-shard-0")?;
        ensure!(deployment["status"]["readyReplicas"] == 1, "the worker does not go on");
        plant.kubectl(&["delete", "ingestpipelines.penstock.dev", PIPELINE, "--wait=false"])?;
        until_async("the pipeline is gone", PATIENCE, || async { plant.pipeline().await.is_err() }).await
    };
    let result = check.await.with_context(|| plant.logs());
    // As it was, for who uses the cluster after us.
    plant::install(&cluster)?;
    result
}
