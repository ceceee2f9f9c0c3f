//! The cluster itself. It takes half a minute and root, so: `cargo test -p penstock-e2e cluster:: -- --ignored`.

use std::net::TcpListener;

use super::*;

const PODS: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: try, labels: {pod-security.kubernetes.io/enforce: restricted}}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: sleeper, namespace: try}
spec:
  selector: {matchLabels: {app: sleeper}}
  template:
    metadata: {labels: {app: sleeper}}
    spec:
      terminationGracePeriodSeconds: 1
      securityContext: {runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}
      containers:
      - name: sleeper
        image: localhost/penstock:test
        imagePullPolicy: Never
        command: [bash, -c, "echo started; exec sleep infinity"]
        securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
"#;

/// What bash in a pod says of a connection; nothing if it stands.
fn connect(cluster: &Cluster, pod: &str, address: &str, port: u16) -> String {
    let script = format!("timeout 5 bash -c '</dev/tcp/{address}/{port}' 2>&1 || true");
    cluster.kubectl(&["exec", "-n", "try", pod, "--", "bash", "-c", &script]).unwrap()
}

#[test]
#[ignore = "starts a cluster"]
fn pods_of_two_nodes_reach_each_other_and_this_machine_and_nothing_of_them_stays() {
    let cluster = Cluster::start(2).unwrap();
    cluster.load_penstock().unwrap();
    let manifest = tempfile::NamedTempFile::new().unwrap();
    fs::write(manifest.path(), PODS).unwrap();
    cluster.kubectl(&["apply", "-f", manifest.path().to_str().unwrap()]).unwrap();
    cluster.kubectl(&["rollout", "status", "-n", "try", "daemonset/sleeper", "--timeout=60s"]).unwrap();
    let path = "jsonpath={range .items[*]}{.metadata.name} {.status.podIP} {.spec.nodeName}{\"\\n\"}{end}";
    let pods = cluster.kubectl(&["get", "pods", "-n", "try", "-o", path]).unwrap();
    let pods: Vec<Vec<&str>> = pods.lines().map(|line| line.split(' ').collect()).collect();
    assert_eq!(pods.len(), 2);
    assert_ne!(pods[0][2], pods[1][2], "one pod on each node");

    let host = cluster.host_address().unwrap().to_string();
    let listener = TcpListener::bind((host.as_str(), 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    for (pod, other) in [(&pods[0], &pods[1]), (&pods[1], &pods[0])] {
        assert_eq!(cluster.kubectl(&["logs", "-n", "try", pod[0]]).unwrap(), "started\n");
        assert_eq!(connect(&cluster, pod[0], network::API_SERVICE, 443), "", "the Service kubernetes");
        assert_eq!(connect(&cluster, pod[0], &host, port), "", "this machine");
        // Nothing listens there: an answer all the same.
        assert!(connect(&cluster, pod[0], other[1], 9).contains("Connection refused"), "the other pod");
    }
    let requests = fs::read_to_string(cluster.audit_log().unwrap()).unwrap();
    assert!(requests.contains("/apis/apps/v1/namespaces/try/daemonsets"), "the audit log has the request");
    assert!(cluster.helm(&["list"]).unwrap().starts_with("NAME"));

    drop(cluster);
    assert!(!is_up() && running_nodes().is_empty());
    assert!(!network::is_connected());
    assert_eq!(cgroups::left(), Vec::<PathBuf>::new());
}
