//! Why a command could not do its work.

use penstock_operator::resolve::Unresolved;

/// What went wrong, for a person.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No cluster, or a kubeconfig that is none.
    #[error("the kubeconfig: {0}")]
    Kubeconfig(#[from] kube::config::KubeconfigError),
    /// Neither a kubeconfig nor a cluster around.
    #[error("no cluster: {0}")]
    Infer(#[from] Box<kube::config::InferConfigError>),
    /// The API server refused, or could not be reached.
    #[error("the API server: {0}")]
    Api(#[from] kube::Error),
    /// There is no such pipeline.
    #[error("there is no pipeline {name} in the namespace {namespace}; name another one with -n")]
    NotFound {
        /// Where.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// Such a spec would be refused.
    #[error("{0}")]
    Unresolved(#[from] Unresolved),
    /// A stored plan that cannot be read.
    #[error("the plan's ConfigMap: {0}")]
    Plan(#[from] serde_json::Error),
    /// Nobody can be asked for dead letters.
    #[error(
        "no worker of {0} runs; dead letters are read in a worker's pod. Resume the pipeline, or run penstock-worker dead-letters where the database can be reached"
    )]
    NoWorker(String),
    /// kubectl is not there.
    #[error("starting kubectl: {0}")]
    Kubectl(std::io::Error),
}
