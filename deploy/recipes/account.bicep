// An account for the driver's volumes, the container that a class names, and the right to it for an identity. Neither compiled nor deployed yet.
//   az deployment group create -g GROUP -f account.bicep -p accountName=ACCOUNT principalId=OBJECT-ID
targetScope = 'resourceGroup'

@description('Name of the account: 3 to 24 small letters and digits.')
@minLength(3)
@maxLength(24)
param accountName string

@description('Name of the container that the StorageClass names.')
param containerName string = 'volumes'

@description('Object id of the identity: the kubelet identity, or that of the driver or of the pods.')
param principalId string

param location string = resourceGroup().location

@description('Storage Blob Data Contributor.')
var blobDataContributor = 'ba92f5b4-2d11-453d-a403-e96b0029c9fe'

resource account 'Microsoft.Storage/storageAccounts@2023-05-01' = {
  name: accountName
  location: location
  kind: 'StorageV2'
  sku: {
    name: 'Standard_ZRS'
  }
  properties: {
    // The driver does not support accounts with a hierarchical namespace.
    isHnsEnabled: false
    minimumTlsVersion: 'TLS1_2'
    supportsHttpsTrafficOnly: true
    allowBlobPublicAccess: false
    // Nobody has the key: identities only.
    allowSharedKeyAccess: false
  }
}

resource blobs 'Microsoft.Storage/storageAccounts/blobServices@2023-05-01' = {
  parent: account
  name: 'default'
}

resource container 'Microsoft.Storage/storageAccounts/blobServices/containers@2023-05-01' = {
  parent: blobs
  name: containerName
}

resource right 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(account.id, principalId, blobDataContributor)
  scope: account
  properties: {
    principalId: principalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', blobDataContributor)
  }
}

output storageAccount string = account.name
output containerName string = container.name
