//! A node: containerd, kubelet and kube-proxy in namespaces of their own.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::json;

use super::control_plane::ControlPlane;
use super::namespace::{self, Namespace, Script};
use super::pki::Pki;
use super::{cgroups, control_plane, image, network};
use crate::stack::process::output;

/// What the API server calls a node; they count from 1.
pub fn name(number: u8) -> String {
    format!("node-{number}")
}

/// The script of a node.
pub fn script_path(folder: &Path, number: u8) -> PathBuf {
    folder.join(name(number)).with_extension("sh")
}

/// What nodes are made from.
#[derive(Debug)]
pub struct Parts {
    /// The cluster's folder.
    pub folder: PathBuf,
    /// Kubernetes' programs.
    pub programs: PathBuf,
    /// Certificates.
    pub pki: Pki,
    /// How many nodes there are.
    pub nodes: u8,
    /// The archive of the image that holds a pod's namespaces.
    pub pause: PathBuf,
}

/// A running node.
#[derive(Debug)]
pub struct Node {
    number: u8,
    folder: PathBuf,
    namespace: Namespace,
}

impl Node {
    /// Starts one. It is ready later.
    pub fn start(parts: &Parts, number: u8, control_plane: &ControlPlane, bound: bool) -> Result<Self> {
        let folder = parts.folder.join(name(number));
        // The whole of /var, for all that a node stores.
        fs::create_dir_all(folder.join("var/lib"))?;
        fs::create_dir_all(folder.join("var/log"))?;
        let script = script(parts, number, &folder)?;
        let namespace = script.run(&control_plane.lock, bound)?;
        network::connect_node(&control_plane.namespace, number, &namespace)?;
        Ok(Self { number, folder, namespace })
    }

    /// One that runs already.
    pub fn running(cluster: &Path, number: u8) -> Option<Self> {
        let namespace = Namespace::of(script_path(cluster, number))?;
        Some(Self { number, folder: cluster.join(name(number)), namespace })
    }

    /// Starts one again that was killed, with what it has on its disk.
    pub fn restart(folder: &Path, number: u8, control_plane: &ControlPlane) -> Result<()> {
        network::disconnect_node(&control_plane.namespace, number)?;
        let namespace = Script::read(script_path(folder, number))?.run(&control_plane.lock, true)?;
        network::connect_node(&control_plane.namespace, number, &namespace)
    }

    /// What the API server calls it.
    pub fn name(&self) -> String {
        name(self.number)
    }

    /// Its address for this machine and the other nodes.
    pub fn address(&self) -> Ipv4Addr {
        network::node(self.number)
    }

    /// The id of its first process.
    pub fn process(&self) -> i32 {
        self.namespace.process()
    }

    /// A program on it.
    pub fn command(&self, program: &str) -> Command {
        self.namespace.command(program)
    }

    /// Brings in an image's archive.
    pub fn load_image(&self, archive: &Path) -> Result<()> {
        let mut import = self.command("ctr");
        import.args(["--namespace", "k8s.io", "images", "import"]).arg(archive);
        output(&mut import).with_context(|| format!("loading an image on {}", self.name())).map(drop)
    }

    /// Gives an image that it has a second name.
    pub fn tag_image(&self, image: &str, second: &str) -> Result<()> {
        let mut tag = self.command("ctr");
        tag.args(["--namespace", "k8s.io", "images", "tag", "--force", image, second]);
        output(&mut tag).with_context(|| format!("naming an image on {}", self.name())).map(drop)
    }

    /// Ends it at once with all its containers, as a power cut does.
    pub fn kill(&mut self) -> Result<()> {
        self.namespace.kill()
    }

    /// The end of its logs.
    pub fn tail(&self) -> String {
        let mut text = self.namespace.tail();
        for log in logs(&self.folder) {
            text.push('\n');
            text.push_str(&namespace::tail(&log));
        }
        text
    }
}

fn logs(folder: &Path) -> [PathBuf; 3] {
    ["containerd.log", "kubelet.log", "kube-proxy.log"].map(|name| folder.join(name))
}

fn script(parts: &Parts, number: u8, folder: &Path) -> Result<Script> {
    let [containerd_log, kubelet_log, proxy_log] = logs(folder);
    let containerd = write(folder, "containerd.toml", &containerd_config(folder))?;
    fs::create_dir_all(folder.join("cni"))?;
    write(folder, "cni/10-pods.conflist", &pod_network(number)?)?;
    let kubelet = write(folder, "kubelet.json", &kubelet_config(parts, number, folder)?)?;
    let proxy = write(folder, "kube-proxy.json", &proxy_config(parts, number)?)?;
    write(folder, "resolv.conf", "options timeout:1 attempts:1\n")?;

    let mut script = Script::new(script_path(&parts.folder, number));
    script.lines(&format!(
        "hostname {node}
mount -t tmpfs tmpfs /run
mount --bind '{folder}/var' /var
# The kubelet would set these for the whole machine. It finds them as it wants them, in files of the node.
for setting in kernel/panic=10 kernel/panic_on_oops=1 vm/overcommit_memory=1 vm/panic_on_oom=0 \
  kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
  file=/run/$(basename ${{setting%=*}})
  echo ${{setting#*=}} >$file
  mount --bind $file /proc/sys/${{setting%=*}}
done
echo 1 >/proc/sys/net/ipv4/ip_forward
ip link set lo up
until ip link show eth0 >/dev/null 2>&1; do sleep 0.02; done
ip address add {address}/24 dev eth0
ip link set eth0 up
ip route add {services} dev eth0",
        node = name(number),
        folder = folder.display(),
        address = network::node(number),
        services = network::SERVICES,
    ));
    for other in (1..=parts.nodes).filter(|other| *other != number) {
        script.lines(&format!("ip route add {} via {}", network::pods(other), network::node(other)));
    }
    script.start(Path::new("containerd"), &["--config".to_owned(), containerd], &containerd_log);
    script.lines(&format!(
        "until ctr version >/dev/null 2>&1; do sleep 0.05; done
ctr --namespace k8s.io images import '{}'
until [ -e '{}' ]; do sleep 0.05; done",
        parts.pause.display(),
        parts.folder.join(control_plane::READY).display()
    ));
    let arguments = [
        format!("--config={kubelet}"),
        format!("--kubeconfig={}", parts.pki.argument(&format!("{}.kubeconfig", name(number)))),
        format!("--hostname-override={}", name(number)),
        format!("--node-ip={}", network::node(number)),
    ];
    script.start(&parts.programs.join("kubelet"), &arguments, &kubelet_log);
    let arguments = [format!("--config={proxy}")];
    script.start(&parts.programs.join("kube-proxy"), &arguments, &proxy_log);
    Ok(script)
}

fn write(folder: &Path, file: &str, text: &str) -> Result<String> {
    let path = folder.join(file);
    fs::write(&path, text)?;
    Ok(path.display().to_string())
}

/// `restrict_oom_score_adj`: a machine without CAP_SYS_RESOURCE cannot lower the score.
fn containerd_config(folder: &Path) -> String {
    format!(
        r#"version = 2
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]
[plugins."io.containerd.internal.v1.opt"]
path = "/var/lib/containerd/opt"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{pause}"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{folder}/cni"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
"#,
        pause = image::PAUSE,
        folder = folder.display()
    )
}

/// A cable of its own for each pod, not a bridge: what a Service answers must pass the node's rules.
fn pod_network(number: u8) -> Result<String> {
    Ok(serde_json::to_string_pretty(&json!({
        "cniVersion": "1.0.0",
        "name": "pods",
        "plugins": [
            {"type": "ptp", "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": network::pods(number)}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            }},
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    }))?)
}

fn kubelet_config(parts: &Parts, number: u8, folder: &Path) -> Result<String> {
    Ok(serde_json::to_string_pretty(&json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": parts.pki.file("ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": parts.pki.file(&format!("{}.crt", name(number))),
        "tlsPrivateKeyFile": parts.pki.file(&format!("{}.key", name(number))),
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": cgroups::make(&name(number))?,
        "failCgroupV1": false,
        "failSwapOn": false,
        "volumePluginDir": "/var/lib/kubelet/volume-plugins",
        // No names are resolved, and that at once.
        "resolvConf": folder.join("resolv.conf"),
        // The machine's disk is not the tests' business.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {
            "memory.available": "50Mi", "nodefs.available": "1%", "nodefs.inodesFree": "1%", "imagefs.available": "1%",
        },
    }))?)
}

fn proxy_config(parts: &Parts, number: u8) -> Result<String> {
    Ok(serde_json::to_string_pretty(&json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": parts.pki.file("kube-proxy.kubeconfig")},
        "hostnameOverride": name(number),
        "mode": "iptables",
        "clusterCIDR": network::PODS,
        // These belong to the whole machine.
        "conntrack": {
            "maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s",
            "udpTimeout": "0s", "udpStreamTimeout": "0s",
        },
    }))?)
}
