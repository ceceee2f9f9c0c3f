//! References to secrets and bundles, and where a worker without a cluster finds them.

use std::path::{Path, PathBuf};

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::rules;

/// A value that comes from a Secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SecretValue {
    /// The key of a Secret in the same namespace.
    pub secret_key_ref: KeyRef,
}

/// A certificate bundle that comes from a ConfigMap or a Secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = rules::one_source())]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BundleSource {
    /// The key of a ConfigMap in the same namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map_key_ref: Option<KeyRef>,
    /// The key of a Secret in the same namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_key_ref: Option<KeyRef>,
}

/// A key of a named object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KeyRef {
    /// Name of the object.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Key within it.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

impl KeyRef {
    /// The file that holds the value: `<folder>/<name>/<key>`.
    pub fn path(&self, folder: &Path) -> PathBuf {
        folder.join(&self.name).join(&self.key)
    }

    /// The environment variable that holds the value: `PENSTOCK_SECRET_<NAME>_<KEY>`, in upper case,
    /// with `_` for all but letters and digits.
    pub fn variable(&self) -> String {
        format!("PENSTOCK_SECRET_{}_{}", self.name, self.key)
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_has_one_file_and_one_variable() {
        let reference = KeyRef { name: "timescale".into(), key: "owner-url".into() };
        assert_eq!(reference.path(Path::new("/s")), Path::new("/s/timescale/owner-url"));
        assert_eq!(reference.variable(), "PENSTOCK_SECRET_TIMESCALE_OWNER_URL");
    }
}
