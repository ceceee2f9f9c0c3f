//! Who is who in the cluster: one authority, a certificate for each part, and kubeconfigs.

use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use rcgen::KeyPair;
use serde_json::json;

use super::network;
use crate::stack::certificates::Authority;

/// Who an operator is that runs on this machine.
pub const OPERATOR: &str = "penstock-operator";

/// The folder with the cluster's certificates, keys and kubeconfigs.
#[derive(Debug, Clone)]
pub struct Pki(PathBuf);

impl Pki {
    /// Writes all of them for so many nodes.
    pub fn write(folder: PathBuf, nodes: u8) -> Result<Self> {
        fs::create_dir_all(&folder)?;
        let pki = Self(folder);
        let authority = Authority::new("penstock-e2e")?;
        pki.put("ca.crt", &authority.pem())?;
        let address = network::CONTROL_PLANE.to_string();
        let names = [
            "localhost",
            "kubernetes.default.svc",
            "kubernetes.default",
            "127.0.0.1",
            network::API_SERVICE,
            &address,
        ];
        pki.sign(&authority, "kube-apiserver", None, &names)?;
        pki.sign(&authority, "front-proxy", None, &[])?;
        // What cluster roles of Kubernetes itself are bound to.
        pki.sign(&authority, "admin", Some("system:masters"), &[])?;
        pki.sign(&authority, OPERATOR, Some("system:masters"), &[])?;
        for part in ["kube-controller-manager", "kube-scheduler", "kube-proxy"] {
            pki.sign_as(&authority, part, &format!("system:{part}"), None, &[])?;
        }
        for number in 1..=nodes {
            let (name, address) = (super::node::name(number), network::node(number).to_string());
            let user = format!("system:node:{name}");
            pki.sign_as(&authority, &name, &user, Some("system:nodes"), &[&name, &address])?;
        }
        // Signs the tokens of ServiceAccounts.
        let key = KeyPair::generate()?;
        pki.put("service-accounts.key", &key.serialize_pem())?;
        pki.put("service-accounts.pub", &key.public_key_pem())?;
        Ok(pki)
    }

    fn sign(&self, authority: &Authority, name: &str, group: Option<&str>, hosts: &[&str]) -> Result<()> {
        self.sign_as(authority, name, name, group, hosts)
    }

    fn sign_as(
        &self,
        authority: &Authority,
        file: &str,
        user: &str,
        group: Option<&str>,
        hosts: &[&str],
    ) -> Result<()> {
        let signed = authority.sign_as(user, group, hosts)?;
        self.put(&format!("{file}.crt"), &signed.certificate)?;
        self.put(&format!("{file}.key"), &signed.key)?;
        write_kubeconfig(&self.file(&format!("{file}.kubeconfig")), &self.0, file)
    }

    fn put(&self, file: &str, text: &str) -> Result<()> {
        put(&self.file(file), text)
    }

    /// The path of one of them.
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The same as an argument.
    pub fn argument(&self, name: &str) -> String {
        self.file(name).display().to_string()
    }
}

/// Only we may read it.
fn put(file: &Path, text: &str) -> Result<()> {
    use std::io::Write;
    let mut options = fs::File::options();
    Ok(options.create(true).write(true).truncate(true).mode(0o600).open(file)?.write_all(text.as_bytes())?)
}

/// How a part reaches the API server. (JSON is YAML.)
fn write_kubeconfig(file: &Path, pki: &Path, user: &str) -> Result<()> {
    let text = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "penstock",
        "clusters": [{"name": "penstock", "cluster": {
            "server": format!("https://{}:6443", network::CONTROL_PLANE),
            "certificate-authority": pki.join("ca.crt"),
        }}],
        "contexts": [{"name": "penstock", "context": {"cluster": "penstock", "user": user}}],
        "users": [{"name": user, "user": {
            "client-certificate": pki.join(format!("{user}.crt")),
            "client-key": pki.join(format!("{user}.key")),
        }}],
    });
    put(file, &serde_json::to_string_pretty(&text)?)
}
