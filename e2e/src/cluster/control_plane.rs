//! etcd, API server, controller manager and scheduler.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::namespace::{Namespace, Script};
use super::network;
use super::node::Parts;
use super::pki::Pki;
use crate::stack;

const NAME: &str = "control-plane";
/// A file that is there when the API server answers.
pub const READY: &str = "ready";
/// Every request, one JSON document a line.
pub const AUDIT: &str = "audit.log";

/// Without nodes: what makes pods is as fast as it can, and nobody asks for the addresses of Services, which
/// could not be those of this machine's loopback.
const WITHOUT_NODES: [&str; 5] = [
    "--controllers=*,-endpoints-controller,-endpointslice-controller,-endpointslice-mirroring-controller",
    "--kube-api-qps=500",
    "--kube-api-burst=1000",
    "--concurrent-deployment-syncs=10",
    "--concurrent-replicaset-syncs=10",
];

/// What runs of it.
#[derive(Debug)]
pub struct ControlPlane {
    /// The file that all processes of the cluster hold a lock on.
    pub lock: File,
    /// Where its parts and the bridge are.
    pub namespace: Namespace,
}

impl ControlPlane {
    /// Starts it, and connects this machine. It answers later.
    pub fn start(parts: &Parts, root: &Path, lock: File, bound: bool) -> Result<Self> {
        let namespace = script(parts, root)?.run(&lock, bound)?;
        network::connect_host(&namespace)?;
        Ok(Self { lock, namespace })
    }
}

/// Its script.
pub fn script_path(folder: &Path) -> PathBuf {
    folder.join(NAME).with_extension("sh")
}

fn script(parts: &Parts, root: &Path) -> Result<Script> {
    let Parts { folder, programs, pki, .. } = parts;
    let mut script = Script::new(script_path(folder));
    let log = |name: &str| folder.join(name).with_extension("log");
    script.lines(&network::make_bridge());
    script.start(Path::new("chroot"), &etcd_arguments(root)?, &log("etcd"));
    let api_server = api_server_arguments(folder, pki)?;
    script.start(&programs.join("kube-apiserver"), &api_server, &log("kube-apiserver"));
    // The others would give up on an API server that is not there.
    script.lines(&format!(
        "until {} --kubeconfig {} get --raw /readyz >/dev/null 2>&1; do sleep 0.2; done\ntouch {}",
        programs.join("kubectl").display(),
        pki.argument("admin.kubeconfig"),
        folder.join(READY).display()
    ));
    let mut manager = vec![
        "--use-service-account-credentials".to_owned(),
        "--allocate-node-cidrs=false".to_owned(),
        // Tests wait for it.
        "--node-monitor-grace-period=30s".to_owned(),
        "--horizontal-pod-autoscaler-sync-period=2s".to_owned(),
        format!("--root-ca-file={}", pki.argument("ca.crt")),
        format!("--service-account-private-key-file={}", pki.argument("service-accounts.key")),
    ];
    if parts.nodes == 0 {
        manager.extend(WITHOUT_NODES.map(str::to_owned));
    }
    let mut others = vec![("kube-controller-manager", manager)];
    if parts.nodes > 0 {
        others.push(("kube-scheduler", Vec::new()));
    }
    for (program, more) in others {
        let mut arguments = vec![
            format!("--kubeconfig={}", pki.argument(&format!("{program}.kubeconfig"))),
            "--leader-elect=false".to_owned(),
            "--secure-port=0".to_owned(),
            "--profiling=false".to_owned(),
        ];
        arguments.extend(more);
        script.start(&programs.join(program), &arguments, &log(program));
    }
    Ok(script)
}

/// As Debian's own user of etcd, on the namespace's loopback; nothing has to outlive a crash of the machine.
fn etcd_arguments(root: &Path) -> Result<Vec<String>> {
    let data = "/srv/cluster/etcd";
    let outside = root.join(data.trim_start_matches('/'));
    if outside.exists() {
        fs::remove_dir_all(&outside)?;
    }
    stack::process::run_in(root, &["install", "-d", "-o", "etcd", "-m", "700", data])?;
    let mut arguments: Vec<String> =
        ["setpriv", "--reuid", "etcd", "--regid", "etcd", "--clear-groups", "etcd"].map(str::to_owned).into();
    arguments.insert(0, root.display().to_string());
    arguments.extend([
        format!("--data-dir={data}"),
        "--unsafe-no-fsync".to_owned(),
        "--log-level=warn".to_owned(),
    ]);
    Ok(arguments)
}

fn api_server_arguments(folder: &Path, pki: &Pki) -> Result<Vec<String>> {
    let policy = folder.join("audit-policy.yaml");
    fs::write(
        &policy,
        "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules: [{level: Metadata}]\n",
    )?;
    let (ca, address) = (pki.argument("ca.crt"), network::CONTROL_PLANE);
    Ok(vec![
        "--etcd-servers=http://127.0.0.1:2379".to_owned(),
        format!("--bind-address={address}"),
        format!("--advertise-address={address}"),
        "--secure-port=6443".to_owned(),
        format!("--service-cluster-ip-range={}", network::SERVICES),
        format!("--tls-cert-file={}", pki.argument("kube-apiserver.crt")),
        format!("--tls-private-key-file={}", pki.argument("kube-apiserver.key")),
        format!("--client-ca-file={ca}"),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--enable-admission-plugins=NodeRestriction".to_owned(),
        "--allow-privileged".to_owned(),
        "--profiling=false".to_owned(),
        // Names of nodes cannot be resolved here.
        "--kubelet-preferred-address-types=InternalIP".to_owned(),
        format!("--kubelet-certificate-authority={ca}"),
        format!("--kubelet-client-certificate={}", pki.argument("admin.crt")),
        format!("--kubelet-client-key={}", pki.argument("admin.key")),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        format!("--service-account-key-file={}", pki.argument("service-accounts.pub")),
        format!("--service-account-signing-key-file={}", pki.argument("service-accounts.key")),
        // API servers in pods, such as one for metrics: by the pods' addresses, as Services' are known on nodes only.
        "--enable-aggregator-routing".to_owned(),
        format!("--requestheader-client-ca-file={ca}"),
        "--requestheader-allowed-names=front-proxy".to_owned(),
        "--requestheader-username-headers=X-Remote-User".to_owned(),
        "--requestheader-group-headers=X-Remote-Group".to_owned(),
        "--requestheader-extra-headers-prefix=X-Remote-Extra-".to_owned(),
        format!("--proxy-client-cert-file={}", pki.argument("front-proxy.crt")),
        format!("--proxy-client-key-file={}", pki.argument("front-proxy.key")),
        format!("--audit-policy-file={}", policy.display()),
        format!("--audit-log-path={}", folder.join(AUDIT).display()),
        // One file, not several.
        "--audit-log-maxsize=2000".to_owned(),
    ])
}

/// The logs of its parts.
pub fn logs(folder: &Path) -> Vec<PathBuf> {
    [NAME, "etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"]
        .iter()
        .map(|name| folder.join(name).with_extension("log"))
        .collect()
}
