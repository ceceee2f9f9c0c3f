//! A bridge on this machine with a cable to each node, and who has which address.

use std::net::Ipv4Addr;
use std::process::Command;

use anyhow::Result;

use crate::stack::process::output;

const BRIDGE: &str = "penstock0";
/// This machine, as nodes and pods see it. The API server listens here.
pub const HOST: Ipv4Addr = Ipv4Addr::new(10, 89, 0, 1);
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

fn cable(number: u8) -> String {
    format!("penstock{number}")
}

fn ip(arguments: &[&str]) -> Result<()> {
    output(Command::new("ip").args(arguments)).map(drop)
}

/// Makes the bridge.
pub fn make() -> Result<()> {
    ip(&["link", "add", BRIDGE, "type", "bridge"])?;
    ip(&["address", "add", &format!("{HOST}/24"), "dev", BRIDGE])?;
    ip(&["link", "set", BRIDGE, "up"])
}

/// Lays a cable from the bridge to `eth0` in the namespace of this process, and the way to the node's pods.
pub fn connect(number: u8, process: i32) -> Result<()> {
    let (cable, process) = (cable(number), process.to_string());
    ip(&["link", "add", &cable, "type", "veth", "peer", "name", "eth0", "netns", &process])?;
    ip(&["link", "set", &cable, "master", BRIDGE, "up"])?;
    ip(&["route", "replace", &pods(number), "via", &node(number).to_string()])
}

/// Our links that are there.
pub fn left() -> Vec<String> {
    let links = std::fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    links
        .filter_map(|link| link.file_name().into_string().ok())
        .filter(|name| name.strip_prefix("penstock").is_some_and(|number| number.parse::<u8>().is_ok()))
        .collect()
}

/// Removes the bridge and all cables; routes go with them.
pub fn remove() -> Result<()> {
    for link in left() {
        // A node's end, and so this one, goes by itself a little after the node.
        if let Err(error) = ip(&["link", "delete", &link])
            && left().contains(&link)
        {
            return Err(error);
        }
    }
    Ok(())
}
