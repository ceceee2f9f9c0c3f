//! What belongs to a pipeline or a store, as the objects that it should be. Pure: no client, no clock.

pub mod files;
pub mod job;
pub mod pod;
pub mod shard;
pub mod shared;
pub mod store;

use std::collections::BTreeMap;

use kube::Resource;
use kube::ResourceExt;
use kube::api::DynamicObject;
use serde_json::{Value, json};

use crate::kinds::Kind;
use crate::names;

/// An object as it should be.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// All of it.
    pub object: Value,
}

/// Who the children belong to.
#[derive(Debug, Clone)]
pub struct Owner {
    /// Name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// For children that go with it.
    pub reference: Value,
}

impl Owner {
    /// Of a pipeline or a store, as the API server has it.
    pub fn of<K: Resource<DynamicType = ()>>(object: &K) -> Self {
        Self {
            name: object.name_any(),
            namespace: object.namespace().unwrap_or_default(),
            reference: json!(object.controller_owner_ref(&())),
        }
    }

    /// A child that goes with its owner.
    fn child(&self, kind: Kind, name: String, labels: &BTreeMap<String, String>, rest: Value) -> Wanted {
        let mut wanted = self.free(kind, name, labels, rest);
        wanted.object["metadata"]["ownerReferences"] = json!([self.reference]);
        wanted
    }

    /// A child that outlives its owner until it is deleted: what the end of a session needs, since
    /// foreground deletion takes all that is owned before the finalizer is asked.
    fn free(&self, kind: Kind, name: String, labels: &BTreeMap<String, String>, rest: Value) -> Wanted {
        let resource = kind.resource();
        let mut object = json!({
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": {"name": name, "namespace": self.namespace, "labels": labels},
        });
        if let (Some(object), Value::Object(rest)) = (object.as_object_mut(), rest) {
            object.extend(rest);
        }
        object["metadata"]["annotations"] = json!({names::WANTED: digest(&object)});
        Wanted { kind, name, object }
    }
}

fn digest(value: &Value) -> String {
    blake3::hash(value.to_string().as_bytes()).to_hex()[..16].to_owned()
}

/// Whether an object was given this pod template last.
pub fn has_template(live: &DynamicObject, wanted: &Wanted) -> bool {
    let digest = wanted.object["metadata"]["annotations"][names::TEMPLATE].as_str();
    digest.is_some() && live.annotations().get(names::TEMPLATE).map(String::as_str) == digest
}

#[cfg(test)]
mod golden;
#[cfg(test)]
mod tests;
