//! Checks the host name of requests, because a web page that maps its own name to our address (DNS
//! rebinding) must not get an answer.

use std::net::{IpAddr, SocketAddr};

/// The accepted host names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hosts {
    /// In lower case, without ports.
    names: Vec<String>,
    /// Whether any other name is refused.
    strict: bool,
}

impl Hosts {
    /// For a daemon that listens on `address`. On a loopback address only this machine's own names
    /// and `names` are accepted. On other addresses every name is, unless `names` lists some.
    pub fn new(address: SocketAddr, names: &[String]) -> Self {
        let loopback = address.ip().to_canonical().is_loopback();
        Self { names: names.to_vec(), strict: loopback || !names.is_empty() }
    }

    /// Whether a request with this Host header (or this authority in its target) is accepted.
    pub fn takes(&self, host: &str) -> bool {
        if !self.strict {
            return true;
        }
        let name = without_port(host).to_ascii_lowercase();
        let address = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(&name);
        let loopback = address.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback());
        loopback || name == "localhost" || self.names.contains(&name)
    }
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if !name.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => {
            // The colons of an IPv6 address without brackets don't start a port.
            if name.contains(':') && !name.ends_with(']') { host } else { name }
        }
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(address: &str, names: &[&str]) -> Hosts {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        Hosts::new(address.parse().unwrap(), &names)
    }

    #[test]
    fn a_loopback_listener_takes_this_machines_names_and_the_given_ones() {
        let ours = hosts("127.0.0.1:8899", &["box.lan"]);
        for host in
            ["localhost", "LocalHost:8899", "127.0.0.1", "127.8.9.1:80", "[::1]:8899", "[::1]", "box.lan:1"]
        {
            assert!(ours.takes(host), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:8899",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "10.0.0.1",
            "[::2]",
            "",
            ":80",
            "localhost@evil",
            "2130706433",
        ] {
            assert!(!ours.takes(host), "{host}");
        }
    }

    #[test]
    fn elsewhere_every_name_is_taken_unless_some_are_given() {
        assert!(hosts("0.0.0.0:1", &[]).takes("any.example"));
        let named = hosts("[::]:1", &["box.lan"]);
        assert!(named.takes("box.lan:1") && named.takes("localhost") && !named.takes("any.example"));
    }
}
