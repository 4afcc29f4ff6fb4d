//! Addresses of the node and its pods, apart from the machine's own.
//!
//! A bridge without ports carries the node's address, so the cluster works
//! on a machine without any network. Pods hang on point-to-point links (`ptp`
//! plugin) and reach each other through the host. One nftables table of the
//! cluster's own brings pods to the API server's service address and out.

use std::fs;
use std::io::Write;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::error::Error;
use crate::process::{on_path, run};

/// The addresses of the cluster with this number, 0 to 199.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Addresses {
    pub(crate) number: u8,
}

/// How many clusters can run on one machine.
pub(crate) const NUMBERS: u8 = 200;

impl Addresses {
    /// The node, and the API server on it.
    pub(crate) fn node(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 234, self.number, 1)
    }

    pub(crate) fn pods(self) -> String {
        format!("10.234.{}.0/24", self.number)
    }

    pub(crate) fn services(self) -> String {
        format!("10.235.{}.0/24", self.number)
    }

    /// Service `kubernetes` is given the first address of its range.
    pub(crate) fn api_service(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 235, self.number, 1)
    }

    fn interface(self) -> String {
        format!("tsr{}", self.number)
    }

    /// Whether another network of the machine has these addresses.
    pub(crate) fn are_taken(self) -> bool {
        if Path::new("/sys/class/net").join(self.interface()).exists() {
            return true;
        }
        let routes = run(Command::new("ip").args(["-4", "route", "show", "table", "all"])).unwrap_or_default();
        [format!("10.234.{}.", self.number), format!("10.235.{}.", self.number)]
            .iter()
            .any(|prefix| routes.contains(prefix.as_str()))
    }

    /// Makes interface and table unless both are there; half of it, left by
    /// an interrupted start, is made anew.
    pub(crate) fn up(self, table: &str, owner: &Path, api_port: u16) -> Result<(), Error> {
        if table_exists("ip", table) && !interfaces_of(owner).is_empty() {
            return Ok(());
        }
        self.down(table, owner, false);
        let name = self.interface();
        let name = name.as_str();
        let address = format!("{}/32", self.node());
        let alias = owner.to_string_lossy();
        ip(&["link", "add", name, "type", "bridge"])?;
        // The alias is how a later run finds what an interrupted one left.
        ip(&["link", "set", name, "alias", &alias])?;
        ip(&["addr", "add", &address, "dev", name])?;
        ip(&["link", "set", name, "up"])?;
        // Without a route, a connection to a service fails before it is translated.
        ip(&["route", "add", &self.services(), "dev", name])?;
        let (vip, node, pods) = (self.api_service(), self.node(), self.pods());
        nft(&format!(
            "table ip {table} {{
               chain prerouting {{
                 type nat hook prerouting priority -101;
                 ip daddr {vip} tcp dport 443 dnat to {node}:{api_port}
               }}
               chain output {{
                 type nat hook output priority -101;
                 ip daddr {vip} tcp dport 443 dnat to {node}:{api_port}
               }}
               chain postrouting {{
                 type nat hook postrouting priority 99;
                 ip saddr {pods} ip daddr != 10.234.0.0/15 masquerade
               }}
             }}"
        ))
    }

    /// Removes what [`Addresses::up`] made, and the tables of kube-proxy if the
    /// cluster ran one. What is gone already is no error.
    pub(crate) fn down(self, table: &str, owner: &Path, kube_proxy: bool) {
        let mut names = interfaces_of(owner);
        // Made a moment before the start was interrupted, it has no alias yet.
        let name = self.interface();
        if alias_of(&name).is_some_and(|alias| alias.is_empty()) {
            names.push(name);
        }
        for name in names {
            if let Err(error) = ip(&["link", "del", &name]) {
                tracing::warn!(%error, "Interface was not removed.");
            }
        }
        let mut tables = vec![("ip", table)];
        if kube_proxy {
            tables.extend([("ip", KUBE_PROXY_TABLE), ("ip6", KUBE_PROXY_TABLE)]);
        }
        for (family, table) in tables {
            if table_exists(family, table)
                && let Err(error) = nft(&format!("delete table {family} {table}"))
            {
                tracing::warn!(%error, "Network table was not removed.");
            }
        }
    }
}

/// Interfaces that carry the state folder as their alias.
pub(crate) fn interfaces_of(owner: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir("/sys/class/net") else {
        return Vec::new();
    };
    entries
        .flatten()
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .filter(|name| alias_of(name).is_some_and(|alias| Path::new(&alias) == owner))
        .collect()
}

/// An interface's alias, empty when it has none; `None` without the interface.
fn alias_of(name: &str) -> Option<String> {
    fs::read_to_string(format!("/sys/class/net/{name}/ifalias"))
        .ok()
        .map(|alias| alias.trim_end().to_owned())
}

/// The name is kube-proxy's own and the same in every cluster, so only one
/// cluster of a machine can run it.
pub(crate) const KUBE_PROXY_TABLE: &str = "kube-proxy";

pub(crate) fn table_exists(family: &str, table: &str) -> bool {
    run(Command::new("nft").args(["list", "tables", family]))
        .is_ok_and(|tables| tables.lines().any(|l| l.split_whitespace().last() == Some(table)))
}

fn ip(args: &[&str]) -> Result<(), Error> {
    run(Command::new("ip").args(args)).map(drop)
}

fn nft(script: &str) -> Result<(), Error> {
    let spawn_error = |source| Error::Spawn {
        program: "nft".to_owned(),
        source,
    };
    let program = on_path("nft").unwrap_or_else(|| "nft".into());
    let mut child = Command::new(program)
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(spawn_error)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(script.as_bytes()).map_err(spawn_error)?;
    }
    let output = child.wait_with_output().map_err(spawn_error)?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::Command {
        command: "nft -f -".to_owned(),
        status: output.status,
        output: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}
