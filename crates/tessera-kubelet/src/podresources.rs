//! Client of the kubelet's PodResources API, the second source of who holds
//! which ids. It gives names, not UIDs, and leaves ordinary init containers out.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use crate::proto::podresources_v1::ListPodResourcesRequest;
use crate::proto::podresources_v1::pod_resources_lister_client::PodResourcesListerClient;
use crate::socket;

/// Where the kubelet serves the API, below its root folder.
pub const SOCKET: &str = "pod-resources/kubelet.sock";

/// The ids of one resource that one container holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holding {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// Name of the container.
    pub container: String,
    /// Device ids.
    pub device_ids: BTreeSet<String>,
}

/// Why the question had no answer.
#[derive(Debug, thiserror::Error)]
pub enum PodResourcesError {
    /// Nothing answers at the socket.
    #[error("cannot reach the kubelet's PodResources socket")]
    Connect(#[from] tonic::transport::Error),
    /// The kubelet refused, for example by its rate limit.
    #[error("the kubelet refused the PodResources list")]
    List(#[source] Box<tonic::Status>),
}

/// Lists who holds ids of `resource`.
///
/// # Errors
/// When the kubelet cannot be reached within `deadline` or refuses.
pub async fn holders(socket: &Path, resource: &str, deadline: Duration) -> Result<Vec<Holding>, PodResourcesError> {
    let channel = socket::connect(socket, deadline).await?;
    let mut request = tonic::Request::new(ListPodResourcesRequest {});
    request.set_timeout(deadline);
    let reply = PodResourcesListerClient::new(channel)
        .max_decoding_message_size(16 << 20)
        .list(request)
        .await
        .map_err(|status| PodResourcesError::List(Box::new(status)))?
        .into_inner();
    let mut holders = Vec::new();
    for pod in reply.pod_resources {
        for container in pod.containers {
            let device_ids: BTreeSet<String> = container
                .devices
                .into_iter()
                .filter(|devices| devices.resource_name == resource)
                .flat_map(|devices| devices.device_ids)
                .collect();
            if !device_ids.is_empty() {
                holders.push(Holding {
                    namespace: pod.namespace.clone(),
                    pod: pod.name.clone(),
                    container: container.name,
                    device_ids,
                });
            }
        }
    }
    Ok(holders)
}
