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

/// A pod that the kubelet knows and that has not ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KubeletPod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its containers with their ids of the resource, which may be none.
    /// Ordinary init containers are left out.
    pub containers: Vec<(String, BTreeSet<String>)>,
}

/// Lists the pods that the kubelet knows, those without ids of `resource`
/// included: among them are the pod that it is admitting and none that it has
/// yet to admit.
///
/// The kubelet forgets the ids of ended pods as it answers, those of the
/// container that it is just allocating for included. So this is not asked
/// during an Allocate call.
///
/// # Errors
/// When the kubelet cannot be reached within `deadline` or refuses.
pub async fn pods(socket: &Path, resource: &str, deadline: Duration) -> Result<Vec<KubeletPod>, PodResourcesError> {
    let channel = socket::connect(socket, deadline).await?;
    let mut request = tonic::Request::new(ListPodResourcesRequest {});
    request.set_timeout(deadline);
    let reply = PodResourcesListerClient::new(channel)
        .max_decoding_message_size(16 << 20)
        .list(request)
        .await
        .map_err(|status| PodResourcesError::List(Box::new(status)))?
        .into_inner();
    let pods = reply.pod_resources.into_iter().map(|pod| KubeletPod {
        namespace: pod.namespace,
        name: pod.name,
        containers: pod
            .containers
            .into_iter()
            .map(|container| {
                let ids = container
                    .devices
                    .into_iter()
                    .filter(|devices| devices.resource_name == resource)
                    .flat_map(|devices| devices.device_ids)
                    .collect();
                (container.name, ids)
            })
            .collect(),
    });
    Ok(pods.collect())
}

/// Lists who holds ids of `resource`.
///
/// # Errors
/// When the kubelet cannot be reached within `deadline` or refuses.
pub async fn holders(socket: &Path, resource: &str, deadline: Duration) -> Result<Vec<Holding>, PodResourcesError> {
    let pods = pods(socket, resource, deadline).await?;
    let mut holders = Vec::new();
    for pod in pods {
        for (container, device_ids) in pod.containers {
            if !device_ids.is_empty() {
                holders.push(Holding {
                    namespace: pod.namespace.clone(),
                    pod: pod.name.clone(),
                    container,
                    device_ids,
                });
            }
        }
    }
    Ok(holders)
}
