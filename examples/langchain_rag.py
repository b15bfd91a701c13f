"""Retrieval-augmented generation with LangChain. Needs qwen-retrieval[langchain] and langchain-qdrant."""

from langchain_core.documents import Document
from langchain_core.language_models.fake_chat_models import ParrotFakeChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough
from langchain_core.tools import create_retriever_tool
from langchain_qdrant import QdrantVectorStore

from langchain_qwen_retrieval import QwenEmbeddings, QwenReranker, QwenRetriever

TEXTS = {
    "shutil.copy2": "Copies a file to another place and tries to preserve its metadata.",
    "shutil.rmtree": "Deletes an entire directory tree, with everything in it.",
    "shutil.disk_usage": "Returns how much space of a disk is used and how much is free.",
    "os.rename": "Gives a file or directory another name.",
    "os.path.getsize": "Returns the size of a file in bytes.",
    "tempfile.mkdtemp": "Creates a temporary directory that only you can read.",
    "json.dumps": "Turns a Python object into a JSON formatted string.",
    "math.sin": "Returns the sine of x, measured in radians.",
    "random.shuffle": "Shuffles a list in place.",
    "time.sleep": "Suspends the calling thread for a number of seconds.",
}
documents = [Document(f"{name}: {text}", metadata={"function": name}) for name, text in TEXTS.items()]

# Index: the store embeds the documents.
embeddings = QwenEmbeddings(model="demo")  # or "0.6B"
vector_store = QdrantVectorStore.from_documents(documents, embeddings, location=":memory:", collection_name="docs")

# Retrieve many, rerank, keep the best.
reranker = QwenReranker(model="demo")  # or "0.6B"
retriever = QwenRetriever(retriever=vector_store, reranker=reranker, k=3, fetch_k=8)

question = "How do I delete a folder and everything in it?"
for document in retriever.invoke(question):
    print(f"{document.metadata['relevance_score']:.3f}  {document.page_content}")

# Generate: the question and what was found, in one prompt.
model = ParrotFakeChatModel()  # repeats its prompt; a real one: init_chat_model("provider:model")
prompt = ChatPromptTemplate.from_template("Answer from these functions:\n{context}\nQuestion: {question}")


def join(found: list[Document]) -> str:
    """The texts of what was found, a line each."""
    return "\n".join(document.page_content for document in found)


chain = {"context": retriever | join, "question": RunnablePassthrough()} | prompt | model | StrOutputParser()
print(f"\n{chain.invoke('How do I wait for a few seconds?')}")

# Or let an agent decide when to search: create_agent(model, [search]).
search = create_retriever_tool(retriever, "search_functions", "Searches Python's standard library.")
print(f"\n{search.name}: {search.invoke({'query': 'size of a file'}).splitlines()[0]}")
