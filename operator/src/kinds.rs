//! The kinds of objects that the operator makes or watches, as Kubernetes names them.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::ApiResource;

/// A kind of object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// What files a shard has, and the plan.
    ConfigMap,
    /// Who the pods are.
    ServiceAccount,
    /// Where metrics are scraped.
    Service,
    /// How many pods an eviction may take.
    PodDisruptionBudget,
    /// Who may reach the pods.
    NetworkPolicy,
    /// One shard.
    Deployment,
    /// A migration, or the end of a session.
    Job,
    /// Maintenance of a store.
    CronJob,
    /// Made by the others, and looked at.
    Pod,
}

impl Kind {
    /// All kinds, those first that others need.
    pub const ALL: [Self; 9] = [
        Self::ConfigMap,
        Self::ServiceAccount,
        Self::Service,
        Self::PodDisruptionBudget,
        Self::NetworkPolicy,
        Self::Deployment,
        Self::Job,
        Self::CronJob,
        Self::Pod,
    ];

    /// How the API server serves it.
    pub fn resource(self) -> ApiResource {
        match self {
            Self::ConfigMap => ApiResource::erase::<ConfigMap>(&()),
            Self::ServiceAccount => ApiResource::erase::<ServiceAccount>(&()),
            Self::Service => ApiResource::erase::<Service>(&()),
            Self::PodDisruptionBudget => ApiResource::erase::<PodDisruptionBudget>(&()),
            Self::NetworkPolicy => ApiResource::erase::<NetworkPolicy>(&()),
            Self::Deployment => ApiResource::erase::<Deployment>(&()),
            Self::Job => ApiResource::erase::<Job>(&()),
            Self::CronJob => ApiResource::erase::<CronJob>(&()),
            Self::Pod => ApiResource::erase::<Pod>(&()),
        }
    }

    /// Its name, as in a manifest.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ConfigMap => "ConfigMap",
            Self::ServiceAccount => "ServiceAccount",
            Self::Service => "Service",
            Self::PodDisruptionBudget => "PodDisruptionBudget",
            Self::NetworkPolicy => "NetworkPolicy",
            Self::Deployment => "Deployment",
            Self::Job => "Job",
            Self::CronJob => "CronJob",
            Self::Pod => "Pod",
        }
    }
}
