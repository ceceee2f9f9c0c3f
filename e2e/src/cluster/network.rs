//! Who has which address, and the cables between this machine, the control plane and the nodes.
//!
//! The bridge is in the control plane's namespace: this machine has one end of one cable, which goes
//! with that namespace, and its firewall sees nothing of what nodes say to each other.

use std::net::Ipv4Addr;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use super::namespace::Namespace;
use crate::stack::process::output;
use crate::wait::until_blocking;

/// This machine's end.
const LINK: &str = "penstock0";
const BRIDGE: &str = "nodes";
/// This machine, as nodes and pods see it.
pub const HOST: Ipv4Addr = Ipv4Addr::new(10, 89, 0, 1);
/// Where the API server listens, at port 6443.
pub const CONTROL_PLANE: Ipv4Addr = Ipv4Addr::new(10, 89, 0, 10);
/// Addresses of Services.
pub const SERVICES: &str = "10.96.0.0/16";
/// The first of them: the Service `kubernetes`.
pub const API_SERVICE: &str = "10.96.0.1";
/// Addresses of all pods.
pub const PODS: &str = "10.244.0.0/16";

/// The address of a node; they count from 1.
pub fn node(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 89, 0, 10 + number)
}

/// Addresses of a node's pods.
pub fn pods(number: u8) -> String {
    format!("10.244.{number}.0/24")
}

/// What the control plane does first in its namespace.
pub fn make_bridge() -> String {
    format!(
        "ip link set lo up
ip link add {BRIDGE} type bridge
ip address add {CONTROL_PLANE}/24 dev {BRIDGE}
ip link set {BRIDGE} up"
    )
}

fn ip(arguments: &[&str]) -> Result<()> {
    output(Command::new("ip").args(arguments)).map(drop)
}

/// Plugs the end of a cable that is in the control plane's namespace into the bridge.
fn plug(control_plane: &Namespace, link: &str) -> Result<()> {
    output(control_plane.command("ip").args(["link", "set", link, "master", BRIDGE, "up"])).map(drop)
}

/// Connects this machine.
pub fn connect_host(control_plane: &Namespace) -> Result<()> {
    until_blocking("the control plane has its bridge", Duration::from_secs(10), || {
        output(control_plane.command("ip").args(["link", "show", BRIDGE])).is_ok()
    })?;
    let process = control_plane.process().to_string();
    ip(&["link", "add", LINK, "type", "veth", "peer", "name", "host", "netns", &process])?;
    plug(control_plane, "host")?;
    ip(&["address", "add", &format!("{HOST}/24"), "dev", LINK])?;
    ip(&["link", "set", LINK, "up"])
}

/// Connects a node by its `eth0`, and shows this machine and the control plane the way to its pods.
pub fn connect_node(control_plane: &Namespace, number: u8, node_namespace: &Namespace) -> Result<()> {
    let cable = super::node::name(number);
    let (near, far) = (control_plane.process().to_string(), node_namespace.process().to_string());
    ip(&["link", "add", &cable, "netns", &near, "type", "veth", "peer", "name", "eth0", "netns", &far])?;
    plug(control_plane, &cable)?;
    let (pods, address) = (pods(number), node(number).to_string());
    let route = ["route", "replace", &pods, "via", &address];
    output(control_plane.command("ip").args(route))?;
    ip(&route)
}

/// Removes the cable of a node that was killed: the kernel does it too, some time later.
pub fn disconnect_node(control_plane: &Namespace, number: u8) -> Result<()> {
    let cable = super::node::name(number);
    until_blocking("the cable of the node is gone", Duration::from_secs(30), || {
        let _ = output(control_plane.command("ip").args(["link", "delete", &cable]));
        output(control_plane.command("ip").args(["link", "show", &cable])).is_err()
    })
}

/// Whether this machine's end is there.
pub fn is_connected() -> bool {
    output(Command::new("ip").args(["link", "show", LINK])).is_ok()
}

/// Removes this machine's end; addresses and routes go with it.
pub fn remove() -> Result<()> {
    // With the namespace of the other end it goes by itself, a little later.
    if is_connected()
        && let Err(error) = ip(&["link", "delete", LINK])
        && is_connected()
    {
        return Err(error);
    }
    Ok(())
}
