//! Where a node listens, and where others call it: the same, unless something between them passes connections on.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where a node listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listening {
    /// Where others call its supervisor. Its components are called at the same IP address.
    #[serde(rename = "listen")]
    pub address: SocketAddr,
    /// Its own IP address; `None`: the same. Another one if a machine between passes on what comes for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bind: Option<IpAddr>,
    /// The ports of its components' endpoints; `None`: any that are free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<Ports>,
}

impl From<SocketAddr> for Listening {
    fn from(address: SocketAddr) -> Self {
        Listening { address, bind: None, ports: None }
    }
}

impl Listening {
    /// Where its supervisor listens.
    pub fn own(&self) -> SocketAddr {
        SocketAddr::new(self.own_ip(), self.address.port())
    }

    fn own_ip(&self) -> IpAddr {
        self.bind.unwrap_or_else(|| self.address.ip())
    }

    /// Where others call an endpoint that listens here.
    pub fn called(&self, own: SocketAddr) -> SocketAddr {
        SocketAddr::new(self.address.ip(), own.port())
    }

    /// Listens for an endpoint of a component, on the first of its ports that is free.
    ///
    /// # Errors
    /// For people: no port is free, or the address is none of this machine.
    pub fn listen(&self) -> Result<TcpListener, String> {
        let ip = self.own_ip();
        let Ports { first, last } = self.ports.unwrap_or(Ports { first: 0, last: 0 });
        for port in first..=last {
            let address = SocketAddr::new(ip, port);
            match TcpListener::bind(address) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                bound => return bound.map_err(|error| format!("cannot listen on {address}: {error}")),
            }
        }
        Err(format!("cannot listen on {ip}: none of the ports {first}-{last} is free"))
    }
}

/// Ports, from the first to the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    /// The first of them.
    pub first: u16,
    /// The last of them.
    pub last: u16,
}

impl FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let ports = text.split_once('-').and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)));
        match ports {
            Some((first, last)) if 0 < first && first <= last => Ok(Ports { first, last }),
            _ => Err("give the first and the last port: 7701-7763".into()),
        }
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_as_they_are_shown() {
        assert_eq!("7701-7763".parse::<Ports>().unwrap().to_string(), "7701-7763");
        for wrong in ["", "7701", "-", "0-5", "6-5", "1-65536", "1-2-3"] {
            assert!(wrong.parse::<Ports>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn endpoints_take_the_ports_one_after_the_other_and_say_when_there_is_none() {
        // Of this process's own, so that no other test has them.
        let [.., high, low] = std::process::id().to_be_bytes();
        let bind = IpAddr::from([127, 60, high, low]);
        let address = "10.9.8.7:7700".parse().unwrap();
        let listening = Listening { address, bind: Some(bind), ports: Some(Ports { first: 7701, last: 7702 }) };
        assert_eq!(listening.own(), SocketAddr::new(bind, 7700));
        let both = [listening.listen().unwrap(), listening.listen().unwrap()];
        let called = both.each_ref().map(|one| listening.called(one.local_addr().unwrap()).to_string());
        assert_eq!(called, ["10.9.8.7:7701", "10.9.8.7:7702"]);
        let error = listening.listen().unwrap_err();
        assert!(error.contains("none of the ports 7701-7702 is free"), "{error}");
        // Others call it where it listens.
        let own = Listening::from("127.0.0.1:7700".parse::<SocketAddr>().unwrap());
        let endpoint = own.listen().unwrap().local_addr().unwrap();
        assert_eq!((own.own(), own.called(endpoint)), (own.address, endpoint));
    }
}
