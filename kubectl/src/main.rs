//! `kubectl penstock`: a plugin, found by kubectl as `kubectl-penstock` in the PATH. It does what its user
//! may do, and asks the API server alone.

mod dead_letters;
mod error;
mod status;

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use penstock_crds::IngestPipeline;
use penstock_operator::children::files;
use penstock_operator::plan::Plan;
use penstock_operator::preview::Preview;
use serde_json::json;

use crate::error::Error;

/// Pipelines of Penstock.
#[derive(Parser)]
#[command(name = "kubectl penstock", bin_name = "kubectl penstock", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    cluster: Cluster,
}

#[derive(Args)]
struct Cluster {
    /// Namespace of the pipeline; that of the context, if not given.
    #[arg(short, long, global = true)]
    namespace: Option<String>,
    /// Context of the kubeconfig.
    #[arg(long, global = true)]
    context: Option<String>,
    /// The kubeconfig, instead of KUBECONFIG or ~/.kube/config.
    #[arg(long, global = true)]
    kubeconfig: Option<String>,
}

#[derive(Subcommand)]
enum Command {
    /// Which keys would move from where to where, and which shards start and end. Changes nothing.
    Plan {
        #[command(flatten)]
        of: Of,
        /// So many shards instead of those that the spec asks for.
        #[arg(long)]
        replicas: Option<i32>,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// How it is: conditions and shards.
    Status(Of),
    /// Dead letters of its database, by a worker's pod: list, show, export or replay.
    DeadLetters {
        #[command(flatten)]
        of: Of,
        /// As for `penstock-worker dead-letters`, without the manifest: `list --since 2h`.
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Stop consuming: the broker queues for its sessions, up to its limits.
    Pause(Of),
    /// Consume again, what was queued first.
    Resume(Of),
}

#[derive(Args)]
struct Of {
    /// The pipeline: `plant` or `ipl/plant`.
    #[arg(value_name = "PIPELINE", value_parser = name)]
    name: String,
}

/// The name, without a kind before it.
fn name(text: &str) -> Result<String, String> {
    match text.rsplit_once('/') {
        None => Ok(text.to_owned()),
        Some((kind, name)) if KINDS.contains(&kind) => Ok(name.to_owned()),
        Some((kind, _)) => Err(format!("{kind} is no pipeline; write ipl/NAME")),
    }
}

const KINDS: [&str; 4] = ["ipl", "ingestpipeline", "ingestpipelines", "ingestpipelines.penstock.dev"];

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(Cli::parse()).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A pipeline on a cluster.
struct Target {
    client: Client,
    namespace: String,
    pipelines: Api<IngestPipeline>,
    pipeline: IngestPipeline,
    name: String,
}

impl Target {
    async fn find(cluster: &Cluster, of: Of) -> Result<Self, Error> {
        let options = KubeConfigOptions { context: cluster.context.clone(), ..KubeConfigOptions::default() };
        let config = match &cluster.kubeconfig {
            Some(path) => Config::from_custom_kubeconfig(Kubeconfig::read_from(path)?, &options).await?,
            None if options.context.is_some() => Config::from_kubeconfig(&options).await?,
            None => Config::infer().await.map_err(Box::new)?,
        };
        let namespace = cluster.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let client = Client::try_from(config)?;
        let pipelines = Api::namespaced(client.clone(), &namespace);
        let pipeline = pipelines.get_opt(&of.name).await?;
        let pipeline = pipeline
            .ok_or_else(|| Error::NotFound { namespace: namespace.clone(), name: of.name.clone() })?;
        Ok(Self { client, namespace, pipelines, pipeline, name: of.name })
    }

    /// What would change.
    async fn preview(&self, replicas: Option<i32>) -> Result<Preview, Error> {
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), &self.namespace);
        let map = maps.get_opt(&files::plan_name(&self.name)).await?;
        let text = map.and_then(|map| map.data).and_then(|mut data| data.remove(files::PLAN));
        let stored: Plan = match text {
            Some(text) => serde_json::from_str(&text)?,
            None => Plan::default(),
        };
        Ok(Preview::of(self.pipeline.clone(), replicas, &stored)?)
    }

    async fn suspend(&self, suspend: bool) -> Result<(), Error> {
        let patch = Patch::Merge(json!({"spec": {"suspend": suspend}}));
        self.pipelines.patch(&self.name, &PatchParams::default(), &patch).await?;
        let (past, then) = if suspend { ("paused", "False") } else { ("resumed", "True") };
        println!("{}/{} {past}", self.namespace, self.name);
        println!("kubectl -n {} wait --for=condition=Ready={then} ipl/{}", self.namespace, self.name);
        Ok(())
    }
}

async fn run(Cli { command, cluster }: Cli) -> Result<ExitCode, Error> {
    match command {
        Command::Plan { of, replicas, json } => {
            let preview = Target::find(&cluster, of).await?.preview(replicas).await?;
            println!("{}", if json { serde_json::to_string_pretty(&preview)? } else { preview.to_string() });
        }
        Command::Status(of) => {
            let target = Target::find(&cluster, of).await?;
            print!("{}", status::text(&target.namespace, &target.pipeline));
        }
        Command::DeadLetters { of, arguments } => {
            let target = Target::find(&cluster, of).await?;
            return dead_letters::run(&cluster, &target.namespace, &target.pipeline, &arguments);
        }
        Command::Pause(of) => Target::find(&cluster, of).await?.suspend(true).await?,
        Command::Resume(of) => Target::find(&cluster, of).await?.suspend(false).await?,
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_pipeline_is_named_with_its_kind_or_without() {
        for text in ["plant", "ipl/plant", "ingestpipelines.penstock.dev/plant"] {
            assert_eq!(name(text).as_deref(), Ok("plant"));
        }
        assert!(name("deploy/plant").is_err_and(|error| error.contains("ipl/NAME")));
    }

    #[test]
    fn what_is_for_the_worker_is_passed_as_it_is() {
        let cli = Cli::try_parse_from([
            "x",
            "dead-letters",
            "plant",
            "-n",
            "works",
            "list",
            "--since",
            "2h",
            "-n",
            "1",
        ]);
        let Cli { command: Command::DeadLetters { arguments, .. }, cluster } = cli.unwrap() else {
            unreachable!()
        };
        assert_eq!(cluster.namespace.as_deref(), Some("works"));
        assert_eq!(arguments, ["list", "--since", "2h", "-n", "1"]);
    }
}
