//! A download as a browser makes it, slowly enough to be watched, that asks for the rest when it is cut off.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

/// Bytes read at a time.
const PIECE: usize = 256 << 10;
/// Connections that one download may take before it is given up.
const CONNECTIONS: u64 = 1000;
/// How long a server may say nothing.
const PATIENCE: Duration = Duration::from_secs(30);
/// Pause before another connection.
const PAUSE: Duration = Duration::from_millis(20);

/// A file that is being downloaded.
pub struct Download<'a> {
    pub address: SocketAddr,
    /// Its path, which begins with a slash.
    pub path: &'a str,
    pub size: u64,
    /// Bytes a second.
    pub rate: u64,
}

/// A whole file that came.
#[derive(Debug)]
pub struct Downloaded {
    pub hash: Vec<u8>,
    /// On how many connections.
    pub connections: u64,
}

impl Download<'_> {
    /// Downloads it; `progress` hears of the bytes so far.
    ///
    /// # Errors
    /// Why it cannot be had, for people.
    pub fn run(&self, progress: &dyn Fn(u64)) -> Result<Downloaded, String> {
        let (mut hash, mut at, begin) = (Sha256::new(), 0, Instant::now());
        for connections in 1..=CONNECTIONS {
            let ended = self.rest(at, &mut |bytes| {
                hash.update(bytes);
                at += bytes.len() as u64;
                progress(at);
                let due = Duration::from_secs_f64(at as f64 / self.rate as f64);
                std::thread::sleep(due.saturating_sub(begin.elapsed()));
            });
            match ended {
                _ if at == self.size => return Ok(Downloaded { hash: hash.finalize().to_vec(), connections }),
                Err(error) if error.kind() == std::io::ErrorKind::InvalidData => return Err(error.to_string()),
                // Cut off, or refused.
                Ok(()) | Err(_) => std::thread::sleep(PAUSE),
            }
        }
        Err(format!("cut off {CONNECTIONS} times"))
    }

    /// What comes on one connection from the byte `from` on.
    fn rest(&self, from: u64, take: &mut dyn FnMut(&[u8])) -> std::io::Result<()> {
        let wrong = |what: String| std::io::Error::new(std::io::ErrorKind::InvalidData, what);
        let mut stream = TcpStream::connect_timeout(&self.address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let range = if from > 0 { format!("Range: bytes={from}-\r\n") } else { String::new() };
        write!(stream, "GET {} HTTP/1.1\r\nHost: demo\r\nConnection: close\r\n{range}\r\n", self.path)?;
        let mut answer = BufReader::with_capacity(PIECE, stream);
        let mut line = String::new();
        answer.read_line(&mut line)?;
        match line.split(' ').nth(1) {
            Some("200") if from == 0 => {}
            Some("206") if from > 0 => {}
            // The file system or the network is on its way back.
            Some("500" | "503") | None => return Err(std::io::ErrorKind::ConnectionReset.into()),
            Some(_) => return Err(wrong(format!("the web server said: {}", line.trim_end()))),
        }
        while line != "\r\n" {
            line.clear();
            if answer.read_line(&mut line)? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
        let (mut piece, mut left) = (vec![0; PIECE], self.size - from);
        while left > 0 {
            let length = answer.read(&mut piece)?;
            if length == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            if length as u64 > left {
                return Err(wrong("more bytes came than the file has".into()));
            }
            left -= length as u64;
            take(&piece[..length]);
        }
        Ok(())
    }
}
