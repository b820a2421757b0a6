//! Peers that are called by futures: tarpc, gRPC (tonic) and Cap'n Proto, each over a unix socket and over TCP, and D-Bus between two
//! (zbus).

use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::StreamExt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;

use crate::measure::{BYTES, Row, of_futures};
use crate::wire::{Listener, Wire, connect};

pub mod tarpc_echo {
    use super::*;
    use tarpc::server::{BaseChannel, Channel};
    use tarpc::tokio_serde::formats::Bincode;
    use tarpc::tokio_util::codec::{Framed, LengthDelimitedCodec};

    #[tarpc::service]
    trait Echo {
        async fn echo(bytes: Vec<u8>) -> Vec<u8>;
    }

    #[derive(Clone)]
    struct Server;

    impl Echo for Server {
        async fn echo(self, _: tarpc::context::Context, bytes: Vec<u8>) -> Vec<u8> {
            bytes
        }
    }

    fn framed(stream: impl Wire) -> Framed<Box<dyn Wire>, LengthDelimitedCodec> {
        Framed::new(Box::new(stream), LengthDelimitedCodec::new())
    }

    pub async fn serve(listener: Listener, ready: impl FnOnce()) {
        ready();
        let transport = tarpc::serde_transport::new(framed(listener.accept().await), Bincode::default());
        BaseChannel::with_defaults(transport)
            .execute(Server.serve())
            .for_each(|call| async { drop(tokio::spawn(call)) })
            .await;
    }

    pub async fn measure(name: &str, path: &Path, duration: Duration) -> Vec<Row> {
        let transport = tarpc::serde_transport::new(framed(connect(path).await), Bincode::default());
        let client = EchoClient::new(tarpc::client::Config::default(), transport).spawn();
        let call = move || {
            let client = client.clone();
            async move {
                let echoed = client.echo(tarpc::context::current(), vec![7; BYTES]).await.expect("an answer");
                assert_eq!(echoed.len(), BYTES);
            }
        };
        of_futures(name, "block", call, duration).await
    }
}

pub mod grpc_echo {
    use super::*;
    use tonic::transport::{Endpoint, Server};
    use tonic_prost::ProstCodec;

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Bytes {
        #[prost(bytes = "vec", tag = "1")]
        bytes: Vec<u8>,
    }

    /// What tonic's generator would write for one unary method.
    #[derive(Clone)]
    struct Echo;

    impl tonic::server::NamedService for Echo {
        const NAME: &'static str = "echo.Echo";
    }

    impl tonic::server::UnaryService<Bytes> for Echo {
        type Response = Bytes;
        type Future = std::future::Ready<Result<tonic::Response<Bytes>, tonic::Status>>;

        fn call(&mut self, request: tonic::Request<Bytes>) -> Self::Future {
            std::future::ready(Ok(tonic::Response::new(request.into_inner())))
        }
    }

    type Answer = http::Response<tonic::body::Body>;

    impl tower::Service<http::Request<tonic::body::Body>> for Service {
        type Response = Answer;
        type Error = std::convert::Infallible;
        type Future = Pin<Box<dyn Future<Output = Result<Answer, Self::Error>> + Send>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
            Box::pin(async move {
                let mut grpc = tonic::server::Grpc::new(ProstCodec::<Bytes, Bytes>::default());
                Ok(grpc.unary(Echo, request).await)
            })
        }
    }

    #[derive(Clone)]
    struct Service;

    impl tonic::server::NamedService for Service {
        const NAME: &'static str = <Echo as tonic::server::NamedService>::NAME;
    }

    /// What tonic wants to know of a connection: nothing.
    struct Served(Box<dyn Wire>);

    impl tonic::transport::server::Connected for Served {
        type ConnectInfo = ();
        fn connect_info(&self) {}
    }

    impl AsyncRead for Served {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            to: &mut tokio::io::ReadBuf<'_>,
        ) -> Poll<std::io::Result<()>> {
            Pin::new(&mut self.0).poll_read(cx, to)
        }
    }

    impl AsyncWrite for Served {
        fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<std::io::Result<usize>> {
            Pin::new(&mut self.0).poll_write(cx, from)
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
            Pin::new(&mut self.0).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
            Pin::new(&mut self.0).poll_shutdown(cx)
        }
    }

    pub async fn serve(listener: Listener, ready: impl FnOnce()) {
        ready();
        let accepted = futures::stream::unfold(listener, |listener| async {
            let stream = Served(Box::new(listener.accept().await));
            Some((Ok::<_, std::io::Error>(stream), listener))
        });
        Server::builder().add_service(Service).serve_with_incoming(accepted).await.expect("a server");
    }

    pub async fn measure(name: &str, path: &Path, duration: Duration) -> Vec<Row> {
        let path = path.to_owned();
        let connector = move |_: http::Uri| {
            let path = path.clone();
            async move { Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(connect(&path).await)) }
        };
        let endpoint = Endpoint::from_static("http://localhost");
        let channel = endpoint.connect_with_connector(tower::service_fn(connector)).await.expect("the server listens");
        let call = move || {
            let mut grpc = tonic::client::Grpc::new(channel.clone());
            async move {
                grpc.ready().await.expect("the server lives");
                let request = tonic::Request::new(Bytes { bytes: vec![7; BYTES] });
                let path = http::uri::PathAndQuery::from_static("/echo.Echo/Echo");
                let answer = grpc.unary(request, path, ProstCodec::<Bytes, Bytes>::default()).await;
                assert_eq!(answer.expect("an answer").into_inner().bytes.len(), BYTES);
            }
        };
        of_futures(name, "block", call, duration).await
    }
}

pub mod capnp_echo {
    use super::*;
    use capnp_rpc::rpc_twoparty_capnp::Side;
    use capnp_rpc::{RpcSystem, twoparty};
    use tokio_util::compat::{TokioAsyncReadCompatExt, TokioAsyncWriteCompatExt};

    pub use crate::echo_capnp::echo;

    struct Server;

    impl echo::Server for Server {
        async fn echo(
            self: std::rc::Rc<Self>,
            params: echo::EchoParams,
            mut results: echo::EchoResults,
        ) -> Result<(), capnp::Error> {
            results.get().set_bytes(params.get()?.get_bytes()?);
            Ok(())
        }
    }

    fn system(stream: impl Wire, side: Side, bootstrap: Option<capnp::capability::Client>) -> RpcSystem<Side> {
        let (read, write) = tokio::io::split(stream);
        let network = twoparty::VatNetwork::new(
            futures::io::BufReader::new(read.compat()),
            futures::io::BufWriter::new(write.compat_write()),
            side,
            Default::default(),
        );
        RpcSystem::new(Box::new(network), bootstrap)
    }

    pub async fn serve(listener: Listener, ready: impl FnOnce()) {
        ready();
        let stream = listener.accept().await;
        let client: echo::Client = capnp_rpc::new_client(Server);
        let _ = system(stream, Side::Server, Some(client.client)).await;
    }

    pub async fn measure(name: &str, path: &Path, duration: Duration) -> Vec<Row> {
        let stream = connect(path).await;
        let mut system = system(stream, Side::Client, None);
        let client: echo::Client = system.bootstrap(Side::Server);
        drop(tokio::task::spawn_local(system));
        let call = move || {
            let mut request = client.echo_request();
            request.get().set_bytes(&[7; BYTES]);
            async move {
                let answer = request.send().promise.await.expect("an answer");
                assert_eq!(answer.get().and_then(|answer| answer.get_bytes()).expect("bytes").len(), BYTES);
            }
        };
        of_futures(name, "block", call, duration).await
    }
}

pub mod dbus_echo {
    use super::*;

    struct Echo;

    #[zbus::interface(name = "a.Echo")]
    impl Echo {
        fn echo(&self, bytes: Vec<u8>) -> Vec<u8> {
            bytes
        }
    }

    pub async fn serve(path: &Path, ready: impl FnOnce()) {
        let listener = tokio::net::UnixListener::bind(path).expect("a new path");
        ready();
        let (stream, _) = listener.accept().await.expect("a client");
        let stream = stream.into_std().expect("a socket");
        let builder = zbus::connection::Builder::unix_stream(stream).server(zbus::Guid::generate());
        let _connection = builder.p2p().serve_at("/echo", Echo).build().await.expect("a connection");
        std::future::pending().await
    }

    pub async fn measure(path: &Path, duration: Duration) -> Vec<Row> {
        let stream = UnixStream::connect(path).await.expect("the server listens");
        let builder = zbus::connection::Builder::unix_stream(stream.into_std().expect("a socket")).p2p();
        let connection = builder.build().await.expect("a connection");
        let call = move || {
            let connection = connection.clone();
            async move {
                let bytes = vec![7u8; BYTES];
                let answer = connection.call_method(None::<&str>, "/echo", Some("a.Echo"), "Echo", &bytes).await;
                let echoed: Vec<u8> = answer.expect("an answer").body().deserialize().expect("bytes");
                assert_eq!(echoed.len(), BYTES);
            }
        };
        of_futures("D-Bus (zbus)", "block", call, duration).await
    }
}
