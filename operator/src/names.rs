//! Names and labels of what belongs to a pipeline or a store. Stable: a change of a name makes a second
//! object, and leaves the first.

use std::collections::BTreeMap;

/// Longest name of a child: that of a CronJob, whose Jobs' names are 11 characters longer.
const LONGEST: usize = 52;
/// Longest value of a label.
const LONGEST_LABEL: usize = 63;

/// Label of all that the operator made.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Its value.
pub const PENSTOCK: &str = "penstock";
/// What an object is for: `worker`, `retire`, `migrate`, `maintain` or `plan`.
pub const COMPONENT: &str = "app.kubernetes.io/component";
/// The pipeline that an object belongs to.
pub const PIPELINE: &str = "penstock.dev/pipeline";
/// The store that an object belongs to.
pub const STORE: &str = "penstock.dev/store";
/// The shard's number.
pub const SHARD: &str = "penstock.dev/shard";
/// Annotation: digest of what the operator wants an object to be.
pub const WANTED: &str = "penstock.dev/wanted";
/// Annotation of a Deployment or a retire Job: digest of the pod template that the operator gave it last.
pub const TEMPLATE: &str = "penstock.dev/template";
/// Annotation of a pod: touched, so that its kubelet looks at its ConfigMap at once.
pub const LOOK: &str = "penstock.dev/look";
/// Annotation of a pipeline or store: the operator leaves it alone.
pub const PAUSED: &str = "penstock.dev/paused";
/// Finalizer of a pipeline: its sessions end before it goes.
pub const FINALIZER: &str = "penstock.dev/retire";

/// Name of a child.
pub fn child(owner: &str, suffix: &str) -> String {
    fitted(&format!("{owner}-{suffix}"), LONGEST)
}

/// Value of the label that names an owner.
pub fn label(owner: &str) -> String {
    fitted(owner, LONGEST_LABEL)
}

/// The name itself where it is a DNS label of at most so many characters; else its beginning and a digest
/// of the whole.
fn fitted(name: &str, longest: usize) -> String {
    if name.len() <= longest && !name.contains('.') {
        return name.to_owned();
    }
    let digest = blake3::hash(name.as_bytes()).to_hex();
    let head: String = name.replace('.', "-").chars().take(longest - 9).collect();
    format!("{}-{}", head.trim_end_matches('-'), &digest[..8])
}

/// Name of a shard's Deployment and ConfigMap.
pub fn shard(pipeline: &str, shard: u32) -> String {
    child(pipeline, &format!("shard-{shard}"))
}

/// Labels of a pipeline's object.
pub fn of_pipeline(pipeline: &str, component: &str) -> BTreeMap<String, String> {
    labels(PIPELINE, pipeline, component)
}

/// Labels of a store's object.
pub fn of_store(store: &str, component: &str) -> BTreeMap<String, String> {
    labels(STORE, store, component)
}

/// Labels of a shard's object.
pub fn of_shard(pipeline: &str, component: &str, shard: u32) -> BTreeMap<String, String> {
    let mut labels = of_pipeline(pipeline, component);
    labels.insert(SHARD.to_owned(), shard.to_string());
    labels
}

fn labels(kind: &str, owner: &str, component: &str) -> BTreeMap<String, String> {
    [
        (MANAGED_BY, PENSTOCK.to_owned()),
        ("app.kubernetes.io/name", "penstock-worker".to_owned()),
        ("app.kubernetes.io/instance", label(owner)),
        (COMPONENT, component.to_owned()),
        (kind, label(owner)),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into()
}

/// What selects the pods of all shards, and no others.
pub fn worker_selector(pipeline: &str) -> BTreeMap<String, String> {
    [(PIPELINE.to_owned(), label(pipeline)), (COMPONENT.to_owned(), "worker".to_owned())].into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_name_fits_is_a_dns_label_and_is_its_owners_own(
            a in "[a-z0-9]([-a-z0-9.]{0,250}[a-z0-9])?",
            b in "[a-z0-9]([-a-z0-9.]{0,250}[a-z0-9])?",
            number in 0_u32..256,
        ) {
            let name = shard(&a, number);
            prop_assert!(name.len() <= LONGEST && label(&a).len() <= LONGEST_LABEL);
            prop_assert!(name.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-'), "{name}");
            prop_assert!(!name.starts_with('-') && !name.ends_with('-'));
            prop_assert_eq!(a == b, label(&a) == label(&b));
            prop_assert_eq!(a == b, shard(&b, number) == name);
        }
    }
}
